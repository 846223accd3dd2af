// Host side of one prefill launch.
#pragma once

#include <cuda_runtime.h>

#include "cuda/prefill/arguments.hpp"

namespace flute::cuda {

using PrefillKernel = void (*)(PrefillArguments, TensorMap);

// The kernel for a tile and a format, or null where none is built.
PrefillKernel find_prefill_kernel(int tile, const Format& format);

// Loads a kernel and raises its limit of shared memory: once per kernel and device, ahead of any launch or capture.
cudaError_t prepare_prefill_kernel(PrefillKernel kernel, const DeviceLimits& device);

// Asks the device for DeviceLimits::clusters.
cudaError_t count_resident_clusters(DeviceLimits& limits);

cudaError_t launch_prefill(PrefillKernel kernel, const PrefillArguments& arguments, cudaStream_t stream);

}  // namespace flute::cuda
