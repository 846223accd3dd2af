#include "cuda/prefill/instances.cuh"

flute::cuda::PrefillKernel flute::cuda::prefill_bf16_2(int tile, int groups) {
  return select_prefill<__nv_bfloat16, 2>(tile, groups);
}
