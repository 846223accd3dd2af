// The kernels that are built, a .cu file for each (dtype, bits): null where there is none.
#pragma once

#include "cuda/prefill/prefill.hpp"

namespace flute::cuda {

PrefillKernel prefill_fp16_4(int tile, int groups);
PrefillKernel prefill_fp16_3(int tile, int groups);
PrefillKernel prefill_fp16_2(int tile, int groups);
PrefillKernel prefill_bf16_4(int tile, int groups);
PrefillKernel prefill_bf16_3(int tile, int groups);
PrefillKernel prefill_bf16_2(int tile, int groups);

}  // namespace flute::cuda
