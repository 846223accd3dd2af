// The kernels that are built, a .cu file for each (dtype, bits): null where there is none.
#pragma once

#include "cuda/prefill_mma/prefill_mma.hpp"

namespace flute::cuda {

PrefillMmaKernel prefill_mma_fp16_4(int rows, int row_warps, int groups);
PrefillMmaKernel prefill_mma_fp16_3(int rows, int row_warps, int groups);
PrefillMmaKernel prefill_mma_fp16_2(int rows, int row_warps, int groups);
PrefillMmaKernel prefill_mma_bf16_4(int rows, int row_warps, int groups);
PrefillMmaKernel prefill_mma_bf16_3(int rows, int row_warps, int groups);
PrefillMmaKernel prefill_mma_bf16_2(int rows, int row_warps, int groups);

}  // namespace flute::cuda
