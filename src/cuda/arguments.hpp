// What every multiply is given beside its plan.
#pragma once

#include <cstdint>

namespace flute::cuda {

// T is the activations' dtype, fp16 or bf16. Which rows use which codebook is the plan's matter.
struct MultiplyArguments {
  const uint8_t* codes;   // tiled (layout.hpp)
  const uint8_t* scales;  // T, [scale groups][row groups][16]
  const void* codebooks;  // T, [segments][2^bits]
  const uint8_t* x;       // T, [m][ldx], 16-byte aligned, ldx a multiple of 8
  void* y;                // T, [m][ldy]
  const void* bias;       // T, [n], or null
  int64_t ldx, ldy;
  int m, n, k;
  bool dependent_launch;
};

}  // namespace flute::cuda
