#include "cuda/tiling.cuh"

namespace flute::cuda {

using namespace tiling;

namespace {

// Blocks for `rows` rows by `along` pieces; a grid has up to 2^31 - 1.
unsigned grid(int64_t rows, int length, int piece) {
  return static_cast<unsigned>(row_groups(rows) * ((length + piece - 1) / piece));
}

}  // namespace

cudaError_t tile_codes(int bits, const uint32_t* packed, const TiledRows& at, int k, void* tiled, cudaStream_t stream) {
  const auto kernel = bits == 4 ? tile_kernel<4> : bits == 3 ? tile_kernel<3> : tile_kernel<2>;
  kernel<<<grid(at.rows, k, kBlockK), kThreads, 0, stream>>>(packed, tiled, at, k);
  return cudaGetLastError();
}

cudaError_t untile_codes(int bits, const void* tiled, const TiledRows& at, int k, uint32_t* packed,
                         cudaStream_t stream) {
  const auto kernel = bits == 4 ? untile_kernel<4> : bits == 3 ? untile_kernel<3> : untile_kernel<2>;
  kernel<<<grid(at.rows, k, kBlockK), kThreads, 0, stream>>>(tiled, packed, at, k);
  return cudaGetLastError();
}

cudaError_t tile_scales(const void* scales, DType source_dtype, const TiledRows& at, int groups, int tiled_groups,
                        DType dtype, void* tiled, uint64_t* first_bad, int64_t first_row, cudaStream_t stream) {
  static_assert(sizeof(unsigned long long) == sizeof(uint64_t));
  tile_scales_kernel<<<grid(at.rows, tiled_groups, kScaleGroups), kThreads, 0, stream>>>(
      scales, source_dtype, at, groups, tiled_groups, dtype, static_cast<uint16_t*>(tiled),
      reinterpret_cast<unsigned long long*>(first_bad), first_row);
  return cudaGetLastError();
}

cudaError_t untile_scales(const void* tiled, const TiledRows& at, int groups, void* scales, cudaStream_t stream) {
  untile_scales_kernel<<<grid(at.rows, groups, kScaleGroups), kThreads, 0, stream>>>(
      static_cast<const uint16_t*>(tiled), at, groups, static_cast<uint16_t*>(scales));
  return cudaGetLastError();
}

cudaError_t dequantize_tiled(int bits, const void* tiled, const void* scales, const void* codebook, const TiledRows& at,
                             int k, int group_size, DType dtype, void* weights, cudaStream_t stream) {
  const auto kernel = bits == 4 ? dequantize_kernel<4> : bits == 3 ? dequantize_kernel<3> : dequantize_kernel<2>;
  kernel<<<grid(at.rows, k, kBlockK), kThreads, 0, stream>>>(tiled, scales, codebook, static_cast<uint16_t*>(weights),
                                                             at, k, group_size, dtype);
  return cudaGetLastError();
}

}  // namespace flute::cuda
