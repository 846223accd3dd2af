#include "cuda/prefill/instances.cuh"

flute::cuda::PrefillKernel flute::cuda::prefill_bf16_3(int quads, int tokens, int groups) {
  return select_prefill<__nv_bfloat16, 3>(quads, tokens, groups);
}
