// The template arguments of the prefill kernels on mma.sync as numbers.
#pragma once

#include "cuda/prefill_mma/instances.hpp"
#include "cuda/prefill_mma/prefill_mma.cuh"

namespace flute::cuda {

template <typename T, int kBits, int kRows>
PrefillMmaKernel with_row_warps(int row_warps, int groups) {
  if (row_warps == 2) {
    return groups == 1 ? prefill_mma_kernel<T, kBits, kRows, 2, 1> : prefill_mma_kernel<T, kBits, kRows, 2, 2>;
  }
  if (row_warps == 4) {
    return groups == 1 ? prefill_mma_kernel<T, kBits, kRows, 4, 1> : prefill_mma_kernel<T, kBits, kRows, 4, 2>;
  }
  return nullptr;
}

template <typename T, int kBits>
PrefillMmaKernel select_prefill_mma(int rows, int row_warps, int groups) {
  if (rows == 3) return with_row_warps<T, kBits, 3>(row_warps, groups);
  if (rows == 4) return with_row_warps<T, kBits, 4>(row_warps, groups);
  return nullptr;
}

}  // namespace flute::cuda
