#include "cuda/decode/instances.cuh"

flute::cuda::DecodeKernel flute::cuda::decode_bf16_3(int tiles_m, int rows, int depth, int groups) {
  return select_decode<__nv_bfloat16, 3>(tiles_m, rows, depth, groups);
}
