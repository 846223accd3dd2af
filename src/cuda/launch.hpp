// What the kernels for all cards, decode and prefill on mma.sync, are prepared and launched with.
#pragma once

#include <cuda_runtime.h>

#include "cuda/plan.hpp"

namespace flute::cuda {

// Raises a kernel's limit of shared memory: once per kernel and device, ahead of any launch or capture.
inline cudaError_t prepare_kernel(const void* kernel, const DeviceLimits& device) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_per_block);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

// Arguments: those of a multiply, and a plan, which says how much shared memory.
template <typename Arguments>
cudaError_t launch_kernel(void (*kernel)(Arguments), const Arguments& arguments, int blocks, int warps,
                          cudaStream_t stream) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(blocks);
  config.blockDim = static_cast<unsigned>(32 * warps);
  config.dynamicSmemBytes = static_cast<size_t>(arguments.plan.shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = arguments.dependent_launch ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

}  // namespace flute::cuda
