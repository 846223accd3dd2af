// The template arguments of the decode kernels as numbers.
#pragma once

#include "cuda/decode/decode.cuh"
#include "cuda/decode/instances.hpp"

namespace flute::cuda {

template <typename T, int kBits, int kTilesM, int kRows, int kDepth>
DecodeKernel with_groups(int groups) {
  // A quarter of the 2-bit fragments by byte permutes, where shared memory binds; with more tokens instructions do.
  constexpr int kPermutes = kBits == 2 && kTilesM == 1 ? 1 : 0;
  if (groups == 1) return decode_kernel<T, kBits, kTilesM, kRows, kDepth, 1, kPermutes>;
  if (groups == 2) return decode_kernel<T, kBits, kTilesM, kRows, kDepth, 2, kPermutes>;
  return nullptr;
}

template <typename T, int kBits, int kTilesM, int kRows = max_rows(kTilesM)>
DecodeKernel with_rows(int rows, int depth, int groups) {
  if (rows == kRows && depth == 1) return with_groups<T, kBits, kTilesM, kRows, 1>(groups);
  if constexpr (max_depth(kBits, kTilesM, kRows) == 2) {
    if (rows == kRows && depth == 2) return with_groups<T, kBits, kTilesM, kRows, 2>(groups);
  }
  if constexpr (kRows > 1) return with_rows<T, kBits, kTilesM, kRows - 1>(rows, depth, groups);
  return nullptr;
}

template <typename T, int kBits>
DecodeKernel select_decode(int tiles_m, int rows, int depth, int groups) {
  if (tiles_m == 1) return with_rows<T, kBits, 1>(rows, depth, groups);
  if (tiles_m == 2) return with_rows<T, kBits, 2>(rows, depth, groups);
  if (tiles_m == 4) return with_rows<T, kBits, 4>(rows, depth, groups);
  if (tiles_m == 8) return with_rows<T, kBits, 8>(rows, depth, groups);
  return nullptr;
}

}  // namespace flute::cuda
