// The template arguments of the prefill kernels as numbers.
#pragma once

#include <utility>

#include "cuda/prefill/instances.hpp"
#include "cuda/prefill/prefill.cuh"

namespace flute::cuda {

template <typename T, int kBits, int... kTile>
PrefillKernel select_prefill(int tile, int groups, std::integer_sequence<int, kTile...>) {
  PrefillKernel kernel = nullptr;
  ((kTile == tile ? kernel = groups == 1 ? prefill_kernel<T, kBits, kTile, 1> : prefill_kernel<T, kBits, kTile, 2> : 0),
   ...);
  return kernel;
}

template <typename T, int kBits>
PrefillKernel select_prefill(int tile, int groups) {
  return select_prefill<T, kBits>(tile, groups, std::make_integer_sequence<int, kPrefillTileCount>());
}

}  // namespace flute::cuda
