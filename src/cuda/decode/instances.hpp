// The kernels that are built, a .cu file for each (dtype, bits): null where there is none.
#pragma once

#include "cuda/decode/decode.hpp"

namespace flute::cuda {

DecodeKernel decode_fp16_4(int tiles_m, int rows, int depth, int groups);
DecodeKernel decode_fp16_3(int tiles_m, int rows, int depth, int groups);
DecodeKernel decode_fp16_2(int tiles_m, int rows, int depth, int groups);
DecodeKernel decode_bf16_4(int tiles_m, int rows, int depth, int groups);
DecodeKernel decode_bf16_3(int tiles_m, int rows, int depth, int groups);
DecodeKernel decode_bf16_2(int tiles_m, int rows, int depth, int groups);

}  // namespace flute::cuda
