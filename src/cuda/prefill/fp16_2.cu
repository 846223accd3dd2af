#include "cuda/prefill/instances.cuh"

flute::cuda::PrefillKernel flute::cuda::prefill_fp16_2(int quads, int tokens, int groups) {
  return select_prefill<__half, 2>(quads, tokens, groups);
}
