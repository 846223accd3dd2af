#include "cuda/prefill/instances.cuh"

flute::cuda::PrefillKernel flute::cuda::prefill_fp16_2(int tile, int groups) {
  return select_prefill<__half, 2>(tile, groups);
}
