// Host side of one decode launch.
#pragma once

#include <cuda_runtime.h>

#include "cuda/decode/arguments.hpp"

namespace flute::cuda {

using DecodeKernel = void (*)(DecodeArguments);

// The kernel that a plan needs, or null where none is built.
DecodeKernel find_decode_kernel(const DecodePlan& plan, const Format& format);

cudaError_t launch_decode(DecodeKernel kernel, const DecodeArguments& arguments, cudaStream_t stream);

}  // namespace flute::cuda
