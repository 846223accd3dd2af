// Kernels that only read: the floor, and the ways of keeping memory busy that the decode kernel could use.
#pragma once

#include "ptx.cuh"

namespace flute::cuda {

__device__ inline uint32_t fold(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

// Plain loads: kUnroll independent 16-byte loads per thread and step. The floor.
template <int kUnroll>
__global__ void __launch_bounds__(256) read_plain(const uint4* data, size_t vectors, uint32_t* sink) {
  uint32_t sum = 0;
  const size_t step = static_cast<size_t>(gridDim.x) * 256 * kUnroll;
  for (size_t at = (static_cast<size_t>(blockIdx.x) * kUnroll) * 256 + threadIdx.x; at < vectors; at += step) {
    uint4 v[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      v[i] = at + i * 256 < vectors ? __ldg(data + at + i * 256) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) sum ^= fold(v[i]);
  }
  if (sum == 0x9e3779b9u) *sink = sum;
}

// cp.async: each thread keeps kDepth 16-byte copies in flight into its own places of shared memory. Persistent blocks.
template <int kDepth>
__global__ void __launch_bounds__(256) read_async(const uint4* data, size_t vectors, uint32_t* sink) {
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t mine = ptx::shared_address(memory) + threadIdx.x * 16;
  const size_t step = static_cast<size_t>(gridDim.x) * 256;
  size_t fetch = static_cast<size_t>(blockIdx.x) * 256 + threadIdx.x;
  const auto issue = [&](int slot) {
    if (fetch < vectors) ptx::copy_16(mine + slot * 4096, data + fetch, 16);
    ptx::copy_commit();
    fetch += step;
  };
#pragma unroll 1
  for (int i = 0; i < kDepth; ++i) issue(i);
  uint32_t sum = 0;
  int slot = 0;
  for (size_t at = static_cast<size_t>(blockIdx.x) * 256 + threadIdx.x; at < vectors; at += step) {
    ptx::copy_wait<kDepth - 1>();
    sum ^= fold(ptx::load_shared_4(mine + slot * 4096));
    issue(slot);
    if (++slot == kDepth) slot = 0;
  }
  ptx::copy_wait<0>();
  if (sum == 0x9e3779b9u) *sink = sum;
}

// Bulk copies into a ring per warp, as the decode kernel does: `stages` pieces of `bytes` in flight per warp.
__global__ void __launch_bounds__(256)
    read_bulk(const uint8_t* data, size_t pieces, int bytes, int stages, uint32_t* sink) {
  extern __shared__ __align__(1024) uint8_t memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t barriers = ptx::shared_address(memory) + warp * 256;
  const uint32_t ring = ptx::shared_address(memory) + 2048 + warp * stages * bytes;
  const size_t step = static_cast<size_t>(gridDim.x) * 8;
  size_t fetch = static_cast<size_t>(blockIdx.x) * 8 + warp;
  const uint64_t policy = ptx::evict_first_policy();
  const auto issue = [&](int slot) {
    if (fetch >= pieces) return;
    ptx::mbarrier_arrive_expect(barriers + slot * 8, bytes);
    ptx::copy_bulk(ring + slot * bytes, data + fetch * bytes, bytes, barriers + slot * 8, policy);
    fetch += step;
  };
  if (lane == 0) {
#pragma unroll 1
    for (int i = 0; i < stages; ++i) ptx::mbarrier_init(barriers + i * 8, 1);
    ptx::fence_mbarrier_init();
#pragma unroll 1
    for (int i = 0; i < stages; ++i) issue(i);
  }
  __syncwarp();
  uint32_t sum = 0;
  int slot = 0, parity = 0;
#pragma unroll 1
  for (size_t at = static_cast<size_t>(blockIdx.x) * 8 + warp; at < pieces; at += step) {
    ptx::mbarrier_wait(barriers + slot * 8, parity);
    for (int i = lane * 16; i < bytes; i += 512) sum ^= fold(ptx::load_shared_4(ring + slot * bytes + i));
    __syncwarp();
    if (lane == 0) issue(slot);
    if (++slot == stages) slot = 0, parity ^= 1;
  }
  if (sum == 0x9e3779b9u) *sink = sum;
}

// Tensor-core rate: every warp issues mma.m16n8k16 in kChains independent chains; clocks of one block for `count` of
// each.
template <int kChains>
__global__ void mma_rate(int count, long long* clocks, float* sink) {
  float4 d[kChains] = {};
  uint32_t a[4] = {threadIdx.x, 2, 3, 4};
  __syncthreads();
  const long long begin = clock64();
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) ptx::mma_16x8x16<__half>(d[c], a, 5, 6);
  }
  __syncthreads();
  if (threadIdx.x == 0) *clocks = clock64() - begin;
  float sum = 0;
#pragma unroll
  for (int c = 0; c < kChains; ++c) sum += d[c].x + d[c].y + d[c].z + d[c].w;
  if (sum == 1.2345f) *sink = sum;
}

}  // namespace flute::cuda
