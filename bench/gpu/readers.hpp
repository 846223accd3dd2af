// Kernels that only read: ways of keeping memory busy that a decode kernel could use; and the rate of the tensor-core
// instruction. For Hopper alone.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace flute::cuda::lab {

// Plain loads: 2, 4 or 8 independent 16-byte loads per thread and step.
cudaError_t read_plain(const void* data, size_t bytes, int grid, int unroll, uint32_t* sink, cudaStream_t stream);
// cp.async: each thread keeps 4, 8 or 16 copies of 16 bytes in flight.
cudaError_t read_async(const void* data, size_t bytes, int grid, int depth, uint32_t* sink, cudaStream_t stream);
// Bulk copies into a ring per warp: `stages` pieces of `piece` bytes in flight.
cudaError_t read_bulk(const void* data, size_t bytes, int grid, int piece, int stages, uint32_t* sink,
                      cudaStream_t stream);
// What activations cost: in each of `steps` a block copies `own` bytes that nobody else reads and `common` of
// `common_total` bytes that all blocks read; in a cluster each block fetches its share of them for all.
cudaError_t read_mixed(const void* data, const void* shared, int grid, int own, int common, int common_total, int steps,
                       int cluster, cudaStream_t stream);
// Clocks that a block takes for `count` mma.m16n8k16 in each of 1, 2, 4 or 8 independent chains a warp.
cudaError_t mma_rate(int grid, int warps, int chains, int count, long long* clocks, float* sink);

}  // namespace flute::cuda::lab
