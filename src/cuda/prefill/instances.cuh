// The template arguments of the prefill kernels as numbers.
#pragma once

#include "cuda/prefill/instances.hpp"
#include "cuda/prefill/prefill.cuh"

namespace flute::cuda {

template <typename T, int kBits, int kQuads, int kTokens>
PrefillKernel with_tile(int groups) {
  static_assert(is_prefill_tile(kQuads, kTokens));
  if (groups == 1) return prefill_kernel<T, kBits, kQuads, kTokens, 1>;
  return prefill_kernel<T, kBits, kQuads, kTokens, 2>;
}

template <typename T, int kBits>
PrefillKernel select_prefill(int quads, int tokens, int groups) {
  if (quads == 1 && tokens == 64) return with_tile<T, kBits, 1, 64>(groups);
  if (quads == 2 && tokens == 64) return with_tile<T, kBits, 2, 64>(groups);
  if (quads == 4 && tokens == 64) return with_tile<T, kBits, 4, 64>(groups);
  if (quads == 1 && tokens == 128) return with_tile<T, kBits, 1, 128>(groups);
  if (quads == 2 && tokens == 128) return with_tile<T, kBits, 2, 128>(groups);
  if (quads == 1 && tokens == 256) return with_tile<T, kBits, 1, 256>(groups);
  return nullptr;
}

}  // namespace flute::cuda
