#include "cuda/device.hpp"

namespace flute::cuda {

namespace {

__global__ void any_kernel() {}

}  // namespace

int kernel_target(int index) {
  const DeviceScope scope(index);
  cudaFuncAttributes attributes = {};
  check(cudaFuncGetAttributes(&attributes, any_kernel), "device");
  return attributes.ptxVersion;
}

}  // namespace flute::cuda
