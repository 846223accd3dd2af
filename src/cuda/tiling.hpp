// Packed to tiled and back, on the device. All pointers are device pointers; calls are asynchronous on the stream.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "flute/dtype.hpp"

namespace flute::cuda {

// What `first_bad` of tile_scales holds when all is well.
constexpr uint64_t kNoneBad = ~uint64_t{0};

// Which rows of a tiled matrix: `rows` of them, the first one number `first` (a multiple of 16) of `of`.
struct TiledRows {
  int64_t rows, first, of;
};

// Packed codes [rows, k * bits / 32] to their place in the codes of a tiled matrix (layout.hpp), padding included.
cudaError_t tile_codes(int bits, const uint32_t* packed, const TiledRows& at, int k, void* tiled, cudaStream_t stream);
// The inverse: padding is dropped.
cudaError_t untile_codes(int bits, const void* tiled, const TiledRows& at, int k, uint32_t* packed,
                         cudaStream_t stream);

// Scales [rows, groups] of `source_dtype` to their place in the scales of a tiled matrix, of `dtype` (fp16 or bf16).
// Lowers *first_bad to row * groups + group of the first scale that is not finite, `first_row` being added to the row.
cudaError_t tile_scales(const void* scales, DType source_dtype, const TiledRows& at, int groups, int tiled_groups,
                        DType dtype, void* tiled, uint64_t* first_bad, int64_t first_row, cudaStream_t stream);
// The inverse: [rows, groups] of the tiled scales' dtype, 2 bytes each.
cudaError_t untile_scales(const void* tiled, const TiledRows& at, int groups, void* scales, cudaStream_t stream);

// The weights [rows, k] of `dtype` that codes, scales and codebook [2^bits] of that dtype stand for; 16-byte aligned.
cudaError_t dequantize_tiled(int bits, const void* tiled, const void* scales, const void* codebook, const TiledRows& at,
                             int k, int group_size, DType dtype, void* weights, cudaStream_t stream);

}  // namespace flute::cuda
