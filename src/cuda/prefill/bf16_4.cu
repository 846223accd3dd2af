#include "cuda/prefill/instances.cuh"

flute::cuda::PrefillKernel flute::cuda::prefill_bf16_4(int quads, int tokens, int groups) {
  return select_prefill<__nv_bfloat16, 4>(quads, tokens, groups);
}
