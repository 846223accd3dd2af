#include "cuda/prefill/instances.cuh"

flute::cuda::PrefillKernel flute::cuda::prefill_fp16_3(int tile, int groups) {
  return select_prefill<__half, 3>(tile, groups);
}
