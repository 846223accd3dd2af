// The template arguments of the prefill kernels on mma.sync as numbers.
#pragma once

#include "cuda/prefill_mma/instances.hpp"
#include "cuda/prefill_mma/prefill_mma.cuh"

namespace flute::cuda {

template <typename T, int kBits, int kRows, int kRowWarps>
PrefillMmaKernel with_groups(int groups) {
  return groups == 1 ? prefill_mma_kernel<T, kBits, kRows, kRowWarps, 1>
                     : prefill_mma_kernel<T, kBits, kRows, kRowWarps, 2>;
}

template <typename T, int kBits>
PrefillMmaKernel select_prefill_mma(int rows, int row_warps, int groups) {
  if (rows == 2 && row_warps == 4) return with_groups<T, kBits, 2, 4>(groups);
  if (rows == 2 && row_warps == 8) return with_groups<T, kBits, 2, 8>(groups);
  if (rows == 4 && row_warps == 2) return with_groups<T, kBits, 4, 2>(groups);
  return nullptr;
}

}  // namespace flute::cuda
