// Host side of one decode launch, and the list of kernels that are built.
#pragma once

#include <cuda_runtime.h>

#include "decode_arguments.hpp"

namespace flute::cuda {

enum class Dtype { kHalf, kBfloat16 };

// Raises the shared-memory limit of every kernel once, ahead of any capture.
cudaError_t prepare_decode_kernels();

// What a plan needs to know of the current device.
DeviceLimits query_device();

// `permutes` (2 bits): how many of four half words are decoded by byte permutes; -1: the default.
cudaError_t launch_decode(const DecodeArguments& args, Dtype dtype, int bits, int permutes, cudaStream_t stream);

}  // namespace flute::cuda
