#include "cuda/decode/instances.cuh"

flute::cuda::DecodeKernel flute::cuda::decode_fp16_2(int tiles_m, int rows, int depth, int groups) {
  return select_decode<__half, 2>(tiles_m, rows, depth, groups);
}
