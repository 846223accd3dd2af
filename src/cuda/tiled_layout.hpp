#pragma once
#include <array>
#include <cstddef>

#include "cuda/plan.hpp"
#include "flute/tiled.hpp"

namespace flute::cuda {

/// The sizes of a tiled matrix: what is computed from a TiledView before anything is done with it.
struct TiledLayout {
  Format format;
  int k = 0, groups = 0, tiled_groups = 0;  ///< scale groups of a packed row, and with the padding
  int segments = 1;
  std::array<int, kMaxSegments + 1> segment_row = {};  ///< segment s is rows [segment_row[s], segment_row[s + 1])

  int n() const { return segment_row[static_cast<size_t>(segments)]; }
  int rows(int segment) const {
    const auto s = static_cast<size_t>(segment);
    return segment_row[s + 1] - segment_row[s];
  }
  TiledBytes bytes() const;
  Shape shape(int tokens) const;
};

/// Throws kUnsupported where there are no kernels for the format. Sizes only; needs no device.
TiledLayout tiled_layout(const TiledView& matrix);

}  // namespace flute::cuda
