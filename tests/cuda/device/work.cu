#include "cuda/device/work.hpp"

#include "cuda/device/device_test.hpp"
#include "cuda/measure/kernels.hpp"

namespace flute {
namespace {

__global__ void slow_copy_kernel(const uint16_t* from, uint16_t* to, int64_t count) {
  const long long begin = clock64();
  while (clock64() - begin < 50000) {
  }
  for (int64_t i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) to[i] = from[i];
}

}  // namespace

void fill_uniform(void* out, DType dtype, int64_t count, uint64_t seed) {
  succeed(cuda::fill_uniform(out, static_cast<size_t>(count), dtype, -1, 1, seed, nullptr));
}

void slow_copy(const void* from, void* to, int64_t count, cudaStream_t stream) {
  slow_copy_kernel<<<64, 256, 0, stream>>>(static_cast<const uint16_t*>(from), static_cast<uint16_t*>(to), count);
  succeed(cudaGetLastError());
}

}  // namespace flute
