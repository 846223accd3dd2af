#include "cuda/prefill/instances.cuh"

flute::cuda::PrefillKernel flute::cuda::prefill_fp16_4(int quads, int tokens, int groups) {
  return select_prefill<__half, 4>(quads, tokens, groups);
}
