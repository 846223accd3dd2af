#include "cuda/prefill/instances.cuh"

flute::cuda::PrefillKernel flute::cuda::prefill_fp16_4(int tile, int groups) {
  return select_prefill<__half, 4>(tile, groups);
}
