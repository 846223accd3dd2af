#include "cuda/measure/kernels.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace flute::cuda {
namespace {

constexpr int kThreads = 256;

// kUnroll independent 16-byte loads per thread and step.
template <int kUnroll>
__global__ void __launch_bounds__(kThreads) read_kernel(const uint4* data, size_t vectors, uint32_t* sink) {
  uint32_t sum = 0;
  const size_t step = static_cast<size_t>(gridDim.x) * kThreads * kUnroll;
  for (size_t at = (static_cast<size_t>(blockIdx.x) * kUnroll) * kThreads + threadIdx.x; at < vectors; at += step) {
    uint4 v[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      v[i] = at + i * kThreads < vectors ? __ldg(data + at + i * kThreads) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  if (sum == 0x9e3779b9u) *sink = sum;  // so that nothing is optimised away
}

__device__ uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__global__ void clock_rate_kernel(uint32_t* mhz) {
  constexpr uint64_t kNanoseconds = 20000;  // the timer's steps are 32 ns
  const uint64_t begin = nanoseconds();
  const long long clock = clock64();
  uint64_t end = begin;
  while (end - begin < kNanoseconds) end = nanoseconds();
  *mhz = static_cast<uint32_t>((clock64() - clock) * 1000 / static_cast<long long>(end - begin));
}

constexpr int kFillBlocks = 1024;

// splitmix64: number `index` of the sequence that begins at `seed`.
__device__ uint64_t random_bits(uint64_t seed, size_t index) {
  uint64_t x = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

__global__ void __launch_bounds__(kThreads) fill_bits_kernel(uint64_t* out, size_t count, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t{kThreads} + threadIdx.x; i < count; i += gridDim.x * size_t{kThreads}) {
    out[i] = random_bits(seed, i);
  }
}

__global__ void __launch_bounds__(kThreads)
    fill_uniform_kernel(uint16_t* out, size_t count, DType dtype, float low, float high, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t{kThreads} + threadIdx.x; i < count; i += gridDim.x * size_t{kThreads}) {
    const float value = low + (high - low) * (static_cast<float>(random_bits(seed, i) >> 40) * 0x1p-24f);
    out[i] =
        dtype == DType::kF16 ? __half_as_ushort(__float2half(value)) : __bfloat16_as_ushort(__float2bfloat16(value));
  }
}

}  // namespace

cudaError_t read_once(const void* data, size_t bytes, int variant, int sm_count, uint32_t* sink, cudaStream_t stream) {
  const auto* const vectors = static_cast<const uint4*>(data);
  const size_t count = bytes / 16;
  const auto blocks_for_all = static_cast<int>((count + 8 * kThreads - 1) / (8 * kThreads));
  if (variant == 0) read_kernel<8><<<4 * sm_count, kThreads, 0, stream>>>(vectors, count, sink);
  if (variant == 1) read_kernel<8><<<8 * sm_count, kThreads, 0, stream>>>(vectors, count, sink);
  if (variant == 2) read_kernel<16><<<2 * sm_count, kThreads, 0, stream>>>(vectors, count, sink);
  if (variant == 3) read_kernel<8><<<blocks_for_all, kThreads, 0, stream>>>(vectors, count, sink);
  return cudaGetLastError();
}

cudaError_t clock_rate(uint32_t* mhz, cudaStream_t stream) {
  clock_rate_kernel<<<1, 1, 0, stream>>>(mhz);
  return cudaGetLastError();
}

cudaError_t fill_bits(void* out, size_t bytes, uint64_t seed, cudaStream_t stream) {
  fill_bits_kernel<<<kFillBlocks, kThreads, 0, stream>>>(static_cast<uint64_t*>(out), bytes / 8, seed);
  return cudaGetLastError();
}

cudaError_t fill_uniform(void* out, size_t count, DType dtype, float low, float high, uint64_t seed,
                         cudaStream_t stream) {
  fill_uniform_kernel<<<kFillBlocks, kThreads, 0, stream>>>(static_cast<uint16_t*>(out), count, dtype, low, high, seed);
  return cudaGetLastError();
}

}  // namespace flute::cuda
