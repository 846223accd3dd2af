#include "readers.hpp"

#include "ptx.cuh"

namespace flute::cuda::lab {
namespace {

constexpr int kThreads = 256, kShared = 227 * 1024;

__device__ inline uint32_t fold(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

// Plain loads: kUnroll independent 16-byte loads per thread and step.
template <int kUnroll>
__global__ void __launch_bounds__(256) read_plain_kernel(const uint4* data, size_t vectors, uint32_t* sink) {
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
__global__ void __launch_bounds__(256) read_async_kernel(const uint4* data, size_t vectors, uint32_t* sink) {
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
    read_bulk_kernel(const uint8_t* data, size_t pieces, int bytes, int stages, uint32_t* sink) {
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

// What activations cost: per step a block copies `own` bytes that nobody else reads and `common` bytes that all blocks
// read, from L2. In a cluster each block fetches its share of the common bytes for all of them.
__global__ void __launch_bounds__(32) read_mixed_kernel(const uint8_t* data, const uint8_t* shared, int own, int common,
                                                        int common_total, int steps, int stages, int cluster) {
  extern __shared__ __align__(1024) uint8_t memory[];
  const uint32_t full = ptx::shared_address(memory), free = full + 128, ring = full + 1024;
  const int rank = cluster > 1 ? static_cast<int>(ptx::cluster_rank()) : 0, share = common / cluster;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) ptx::mbarrier_init(full + i * 8, 1), ptx::mbarrier_init(free + i * 8, cluster);
    ptx::fence_mbarrier_init();
  }
  __syncwarp();
  if (cluster > 1) ptx::cluster_barrier();
  if (threadIdx.x == 0) {
    const uint64_t policy = ptx::evict_first_policy();
    const auto issue = [&](int step, int slot) {
      const uint32_t to = ring + slot * (own + common), barrier = full + slot * 8;
      ptx::mbarrier_arrive_expect(barrier, own + common);
      ptx::copy_bulk(to, data + (static_cast<size_t>(blockIdx.x) * steps + step) * own, own, barrier, policy);
      if (common == 0) return;
      const uint8_t* from = shared + step * common % common_total + rank * share;
      if (cluster == 1) ptx::copy_bulk(to + own, from, common, barrier);
      if (cluster > 1) {
        ptx::copy_bulk_multicast(to + own + rank * share, from, share, barrier,
                                 static_cast<uint16_t>((1 << cluster) - 1));
      }
    };
    for (int i = 0; i < stages && i < steps; ++i) issue(i, i);
    for (int step = 0, slot = 0, parity = 0; step < steps; ++step) {
      ptx::mbarrier_wait(full + slot * 8, parity);
      if (step + stages < steps) {
        if (cluster > 1) {
          for (int i = 0; i < cluster; ++i) ptx::mbarrier_arrive_remote(ptx::map_to_rank(free + slot * 8, i));
          ptx::mbarrier_wait_cluster(free + slot * 8, parity);
        }
        issue(step + stages, slot);
      }
      if (++slot == stages) slot = 0, parity ^= 1;
    }
  }
  __syncwarp();
  if (cluster > 1) ptx::cluster_barrier();
}

// Tensor-core rate: every warp issues mma.m16n8k16 in kChains independent chains; clocks of one block for `count` of
// each.
template <int kChains>
__global__ void mma_rate_kernel(int count, long long* clocks, float* sink) {
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

template <typename Kernel>
cudaError_t allow_shared(Kernel kernel) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
}

}  // namespace

cudaError_t read_plain(const void* data, size_t bytes, int grid, int unroll, uint32_t* sink, cudaStream_t stream) {
  const auto kernel = unroll == 2 ? read_plain_kernel<2> : unroll == 4 ? read_plain_kernel<4> : read_plain_kernel<8>;
  kernel<<<grid, kThreads, 0, stream>>>(static_cast<const uint4*>(data), bytes / 16, sink);
  return cudaGetLastError();
}

cudaError_t read_async(const void* data, size_t bytes, int grid, int depth, uint32_t* sink, cudaStream_t stream) {
  const auto kernel = depth == 4 ? read_async_kernel<4> : depth == 8 ? read_async_kernel<8> : read_async_kernel<16>;
  if (const cudaError_t error = allow_shared(kernel); error != cudaSuccess) return error;
  kernel<<<grid, kThreads, depth * kThreads * 16, stream>>>(static_cast<const uint4*>(data), bytes / 16, sink);
  return cudaGetLastError();
}

cudaError_t read_bulk(const void* data, size_t bytes, int grid, int piece, int stages, uint32_t* sink,
                      cudaStream_t stream) {
  if (const cudaError_t error = allow_shared(read_bulk_kernel); error != cudaSuccess) return error;
  read_bulk_kernel<<<grid, kThreads, 2048 + 8 * stages * piece, stream>>>(static_cast<const uint8_t*>(data),
                                                                          bytes / piece, piece, stages, sink);
  return cudaGetLastError();
}

cudaError_t read_mixed(const void* data, const void* shared, int grid, int own, int common, int common_total, int steps,
                       int cluster, cudaStream_t stream) {
  if (const cudaError_t error = allow_shared(read_mixed_kernel); error != cudaSuccess) return error;
  const int stages = min(8, 220 * 1024 / (own + common));
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = 32, config.dynamicSmemBytes = 1024 + stages * (own + common);
  config.stream = stream, config.attrs = &attribute, config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, read_mixed_kernel, static_cast<const uint8_t*>(data),
                            static_cast<const uint8_t*>(shared), own, common, common_total, steps, stages, cluster);
}

cudaError_t mma_rate(int grid, int warps, int chains, int count, long long* clocks, float* sink) {
  const auto kernel = chains == 1   ? mma_rate_kernel<1>
                      : chains == 2 ? mma_rate_kernel<2>
                      : chains == 4 ? mma_rate_kernel<4>
                                    : mma_rate_kernel<8>;
  kernel<<<grid, 32 * warps>>>(count, clocks, sink);
  return cudaGetLastError();
}

}  // namespace flute::cuda::lab
