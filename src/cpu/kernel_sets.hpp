#pragma once
#include "cpu/kernels.hpp"

// Included by the files that Highway compiles once for each instruction set (decode.cpp, limits.cpp, panel.cpp), before
// Highway.

// Vectors of a length unknown to the compiler cannot be held in arrays; the x86 sets left out add nothing that these
// kernels use to the sets that stay.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV | HWY_SSSE3 | HWY_AVX3_DL)

namespace flute::cpu {

/// Puts the kernels of one instruction set into the table.
using FillKernels = void (*)(Kernels& table);

/// For a Highway target (0: the baseline); null where this build does not hold it.
FillKernels decode_kernels(int64_t target);
FillKernels panel_kernels(int64_t target);
FillKernels limit_kernels(int64_t target);

}  // namespace flute::cpu

/// The pointer to `function` in the namespace of Highway's `target`, or null.
#define FLUTE_FOR_TARGET(target, function)            \
  ((target) == HWY_AVX3   ? HWY_CHOOSE_AVX3(function) \
   : (target) == HWY_AVX2 ? HWY_CHOOSE_AVX2(function) \
   : (target) == HWY_SSE4 ? HWY_CHOOSE_SSE4(function) \
   : (target) == HWY_NEON ? HWY_CHOOSE_NEON(function) \
                          : HWY_CHOOSE_FALLBACK(function))
