#include "cuda/prefill_mma/instances.cuh"

flute::cuda::PrefillMmaKernel flute::cuda::prefill_mma_fp16_3(int rows, int row_warps, int groups) {
  return select_prefill_mma<__half, 3>(rows, row_warps, groups);
}
