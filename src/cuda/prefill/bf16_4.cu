#include "cuda/prefill/instances.cuh"

flute::cuda::PrefillKernel flute::cuda::prefill_bf16_4(int tile, int groups) {
  return select_prefill<__nv_bfloat16, 4>(tile, groups);
}
