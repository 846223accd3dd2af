#include "cuda/prefill_mma/instances.cuh"

flute::cuda::PrefillMmaKernel flute::cuda::prefill_mma_bf16_2(int rows, int row_warps, int groups) {
  return select_prefill_mma<__nv_bfloat16, 2>(rows, row_warps, groups);
}
