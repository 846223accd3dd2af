// The kernels of tiling.hpp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/layout.hpp"
#include "cuda/tiling.hpp"

namespace flute::cuda::tiling {

FLUTE_HOST_DEVICE constexpr int64_t row_groups(int64_t rows) { return (rows + kGroupRows - 1) / kGroupRows; }

// --- Codes ---
//
// A block takes 16 rows x 1024 k: 4 to 8 KB of codes, read and written as whole cache lines, rearranged in shared
// memory. Small enough for eight blocks on a multiprocessor, so that some load while others rearrange.

constexpr int kBlockK = 1024;
constexpr int kThreads = 256;

template <int kBits>
struct Piece {
  static constexpr int kUnits = kBlockK / kUnitK;
  static constexpr int kRowWords = kBlockK * kBits / 32;
  // 4 words more than a multiple of 32: 8 rows, in which the lanes of a warp read, are then in banks 4 apart, and the
  // two words that a row's lanes look at (at 3 bits) do not meet the next row's.
  static constexpr int kPitch = kRowWords + 4;

  uint32_t packed[kGroupRows * kPitch];
  alignas(16) uint32_t tiled[kUnits * 32 * kBits];
};

// The piece of a block: which row group, which units, and where they lie.
struct Place {
  int64_t row_group, of_row_groups, first_row;
  int first_unit, units, valid_rows, valid_words;
  int64_t first_word;  // of the packed row

  template <int kBits>
  __device__ static Place of_block(const TiledRows& at, int k) {
    const int along_k = (k + kBlockK - 1) / kBlockK, piece = static_cast<int>(blockIdx.x % along_k);
    Place p;
    p.first_row = blockIdx.x / along_k * int64_t{kGroupRows};
    p.row_group = (at.first + p.first_row) / kGroupRows;
    p.of_row_groups = row_groups(at.of);
    p.first_unit = piece * Piece<kBits>::kUnits;
    p.units = min(Piece<kBits>::kUnits, units_along_k(k) - p.first_unit);
    p.valid_rows = static_cast<int>(min(static_cast<int64_t>(kGroupRows), at.rows - p.first_row));
    p.valid_words = min(kBlockK, k - piece * kBlockK) / 32 * kBits;
    p.first_word = static_cast<int64_t>(piece) * (kBlockK / 32 * kBits);
    return p;
  }
};

// Of a 16-byte piece of the block's units, counted over them: where it lies in the matrix.
template <int kBits>
__device__ uint4* tiled_at(void* tiled, const Place& place, int piece) {
  constexpr int kPieces = unit_bytes(kBits) / 16;
  const int64_t unit = (place.first_unit + piece / kPieces) * place.of_row_groups + place.row_group;
  return static_cast<uint4*>(tiled) + unit * kPieces + piece % kPieces;
}

template <int kBits>
__global__ void __launch_bounds__(kThreads) tile_kernel(const uint32_t* packed, void* tiled, TiledRows at, int k) {
  using P = Piece<kBits>;
  static __shared__ P piece;
  const Place place = Place::of_block<kBits>(at, k);
  const int64_t row_words = static_cast<int64_t>(k) / 32 * kBits;
  const uint32_t* source = packed + place.first_row * row_words + place.first_word;
#pragma unroll
  for (int i = threadIdx.x; i < kGroupRows * P::kRowWords; i += kThreads) {
    const int row = i / P::kRowWords, word = i % P::kRowWords;
    const bool valid = row < place.valid_rows && word < place.valid_words;
    piece.packed[row * P::kPitch + word] = valid ? __ldg(source + row * row_words + word) : 0;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < place.units * 32; i += kThreads) {
    const int unit = i / 32, lane = i % 32;
    const uint32_t* const from = piece.packed + unit * (kUnitK / 32 * kBits);
    const auto code = [from](int row, int column) -> uint32_t {
      const int bit = column * kBits;
      const uint32_t* word = from + row * P::kPitch + bit / 32;
      // A 3-bit code may continue in the next word (the last row's last never does).
      const uint32_t value = kBits == 3 ? __funnelshift_r(word[0], word[1], bit) : word[0] >> bit % 32;
      return value & ((1u << kBits) - 1);
    };
#pragma unroll
    for (int word = 0; word < kBits; ++word) {
      piece.tiled[unit * 32 * kBits + word_position(kBits, lane, word)] = tiled_word(kBits, lane, word, code);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < place.units * unit_bytes(kBits) / 16; i += kThreads) {
    *tiled_at<kBits>(tiled, place, i) = reinterpret_cast<const uint4*>(piece.tiled)[i];
  }
}

template <int kBits>
__global__ void __launch_bounds__(kThreads) untile_kernel(const void* tiled, uint32_t* packed, TiledRows at, int k) {
  using P = Piece<kBits>;
  static __shared__ P piece;
  const Place place = Place::of_block<kBits>(at, k);
  for (int i = threadIdx.x; i < place.units * unit_bytes(kBits) / 16; i += kThreads) {
    reinterpret_cast<uint4*>(piece.tiled)[i] = __ldg(tiled_at<kBits>(const_cast<void*>(tiled), place, i));
  }
  __syncthreads();
  // A thread makes the packed words of one row of a unit: 64 codes.
  static_assert(kGroupRows * kBlockK / kUnitK == kThreads);
  const int row = threadIdx.x % kGroupRows, unit = threadIdx.x / kGroupRows;
  if (unit < place.units) {
    const uint32_t* const from = piece.tiled + unit * 32 * kBits;
    const auto word = [from](int lane, int index) { return from[word_position(kBits, lane, index)]; };
    constexpr int kWords = 2 * kBits;
    uint32_t words[kWords] = {};
#pragma unroll
    for (int j = 0; j < kUnitK; ++j) {
      const uint32_t code = tiled_code(kBits, row, j, word);
      const int bit = j * kBits;
      words[bit / 32] |= code << bit % 32;
      if (bit % 32 + kBits > 32) words[bit / 32 + 1] |= code >> (32 - bit % 32);
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) piece.packed[row * P::kPitch + unit * kWords + i] = words[i];
  }
  __syncthreads();
  const int64_t row_words = static_cast<int64_t>(k) / 32 * kBits;
  uint32_t* const target = packed + place.first_row * row_words + place.first_word;
  for (int i = threadIdx.x; i < place.valid_rows * P::kRowWords; i += kThreads) {
    const int r = i / P::kRowWords, w = i % P::kRowWords;
    if (w < place.valid_words) target[r * row_words + w] = piece.packed[r * P::kPitch + w];
  }
}

// --- Scales: a block takes 16 rows x 64 groups ---

constexpr int kScaleGroups = 64;

// Of the first of the 16 scales of a row group, which begins at row `row` of `at`.
__device__ inline int64_t scale_index(const TiledRows& at, int64_t row, int group) {
  return (group * row_groups(at.of) + (at.first + row) / kGroupRows) * kGroupRows;
}

__device__ inline float load(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return dtype == DType::kF16 ? __half2float(__ushort_as_half(bits)) : __uint_as_float(uint32_t{bits} << 16);
}

__device__ inline uint16_t rounded(float value, DType dtype) {
  return dtype == DType::kF16 ? __half_as_ushort(__float2half_rn(value))
                              : __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

static __global__ void __launch_bounds__(kThreads)
    tile_scales_kernel(const void* scales, DType source_dtype, TiledRows at, int groups, int tiled_groups, DType dtype,
                       uint16_t* tiled, unsigned long long* first_bad, int64_t first_row) {
  static __shared__ uint16_t values[kScaleGroups * kGroupRows];
  const int along = (tiled_groups + kScaleGroups - 1) / kScaleGroups;
  const int first_group = static_cast<int>(blockIdx.x % along) * kScaleGroups;
  const int64_t block_row = blockIdx.x / along * int64_t{kGroupRows};
  for (int i = threadIdx.x; i < kScaleGroups * kGroupRows; i += kThreads) {
    const int group = first_group + i % kScaleGroups;
    const int64_t row = block_row + i / kScaleGroups;
    float value = 0;
    if (row < at.rows && group < groups) {
      value = load(scales, source_dtype, row * groups + group);
      if (!isfinite(value)) {
        atomicMin(first_bad, static_cast<unsigned long long>((first_row + row) * groups + group));
      }
    }
    values[i % kScaleGroups * kGroupRows + scale_position(i / kScaleGroups)] = rounded(value, dtype);
  }
  __syncthreads();
  const int count = min(kScaleGroups, tiled_groups - first_group) * kGroupRows;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    tiled[scale_index(at, block_row, first_group + i / kGroupRows) + i % kGroupRows] = values[i];
  }
}

static __global__ void __launch_bounds__(kThreads)
    untile_scales_kernel(const uint16_t* tiled, TiledRows at, int groups, uint16_t* scales) {
  static __shared__ uint16_t values[kScaleGroups * kGroupRows];
  const int along = (groups + kScaleGroups - 1) / kScaleGroups;
  const int first_group = static_cast<int>(blockIdx.x % along) * kScaleGroups;
  const int64_t block_row = blockIdx.x / along * int64_t{kGroupRows};
  const int count = min(kScaleGroups, groups - first_group);
  for (int i = threadIdx.x; i < count * kGroupRows; i += kThreads) {
    values[i] = tiled[scale_index(at, block_row, first_group + i / kGroupRows) + i % kGroupRows];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kScaleGroups * kGroupRows; i += kThreads) {
    const int group = i % kScaleGroups;
    const int64_t row = block_row + i / kScaleGroups;
    if (group < count && row < at.rows) {
      scales[row * groups + first_group + group] = values[group * kGroupRows + scale_position(i / kScaleGroups)];
    }
  }
}

// --- Back to weights: a block takes 16 rows x 1024 k ---

template <int kBits>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const void* tiled, const void* scales, const void* codebook, uint16_t* weights, TiledRows at,
                      int k, int group_size, DType dtype) {
  using P = Piece<kBits>;
  static __shared__ P piece;
  static __shared__ float table[1 << kBits];
  const Place place = Place::of_block<kBits>(at, k);
  if (threadIdx.x < 1 << kBits) table[threadIdx.x] = load(codebook, dtype, threadIdx.x);
  for (int i = threadIdx.x; i < place.units * unit_bytes(kBits) / 16; i += kThreads) {
    reinterpret_cast<uint4*>(piece.tiled)[i] = __ldg(tiled_at<kBits>(const_cast<void*>(tiled), place, i));
  }
  __syncthreads();
  constexpr int kEach = 8;  // weights of a thread at a time: 16 bytes, all of one group
  const int first_k = place.first_unit * kUnitK, along = min(kBlockK, k - first_k) / kEach;
  for (int i = threadIdx.x; i < place.valid_rows * along; i += kThreads) {
    const int row = i / along, column = i % along * kEach;
    const uint32_t* const from = piece.tiled + column / kUnitK * 32 * kBits;
    const auto word = [from](int lane, int index) { return from[word_position(kBits, lane, index)]; };
    const int group = group_size < 0 ? 0 : (first_k + column) / group_size;
    const float scale = load(scales, dtype, scale_index(at, place.first_row, group) + scale_position(row));
    uint32_t out[kEach / 2];
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      // The product of two such numbers is exact in fp32, so it is rounded once.
      const uint32_t weight = rounded(table[tiled_code(kBits, row, column % kUnitK + j, word)] * scale, dtype);
      out[j / 2] = j % 2 == 0 ? weight : out[j / 2] | weight << 16;
    }
    uint4* const to = reinterpret_cast<uint4*>(weights + (place.first_row + row) * k + first_k + column);
    *to = make_uint4(out[0], out[1], out[2], out[3]);
  }
}

}  // namespace flute::cuda::tiling
