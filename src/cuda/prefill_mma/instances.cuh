// The template arguments of the prefill kernels on mma.sync as numbers.
#pragma once

#include "cuda/prefill_mma/instances.hpp"
#include "cuda/prefill_mma/prefill_mma.cuh"

namespace flute::cuda {

template <typename T, int kBits>
PrefillMmaKernel select_prefill_mma(int row_warps, int groups) {
  if (row_warps == 2) return groups == 1 ? prefill_mma_kernel<T, kBits, 2, 1> : prefill_mma_kernel<T, kBits, 2, 2>;
  if (row_warps == 4) return groups == 1 ? prefill_mma_kernel<T, kBits, 4, 1> : prefill_mma_kernel<T, kBits, 4, 2>;
  return nullptr;
}

}  // namespace flute::cuda
