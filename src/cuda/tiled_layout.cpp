#include "cuda/tiled_layout.hpp"

#include <algorithm>

#include "cuda/backend.hpp"
#include "cuda/format.hpp"
#include "cuda/layout.hpp"

namespace flute::cuda {

TiledBytes TiledLayout::bytes() const {
  const size_t row_groups = (static_cast<size_t>(n()) + kGroupRows - 1) / kGroupRows;
  TiledBytes bytes;
  bytes.codes = row_groups * static_cast<size_t>(units_along_k(k)) * static_cast<size_t>(unit_bytes(format.bits));
  bytes.scales = row_groups * static_cast<size_t>(tiled_groups) * kScaleBytes;
  bytes.codes += kReadBeyond;
  bytes.scales += kReadBeyond;
  bytes.codebooks = (static_cast<size_t>(segments) << format.bits) * 2;
  return bytes;
}

Shape TiledLayout::shape(int tokens) const {
  Shape shape = {.m = tokens, .n = n(), .k = k, .segments = segments};
  std::copy(segment_row.begin(), segment_row.end(), shape.segment_row);
  return shape;
}

TiledLayout tiled_layout(const TiledView& matrix) {
  TiledLayout layout;
  layout.format = supported_format(matrix.n(), matrix.k, matrix.bits, matrix.group_size, matrix.dtype);
  layout.k = static_cast<int>(matrix.k);
  layout.groups =
      layout.format.group_size < 0 ? 1 : (layout.k + layout.format.group_size - 1) / layout.format.group_size;
  layout.tiled_groups = tiled_groups(layout.format.group_size, layout.k);
  layout.segments = matrix.segment_count;
  for (size_t i = 0; i < static_cast<size_t>(matrix.segment_count); ++i) {
    layout.segment_row[i + 1] = layout.segment_row[i] + static_cast<int>(matrix.segment_rows[i]);
  }
  return layout;
}

TiledBytes tiled_bytes(const TiledView& matrix) { return tiled_layout(matrix).bytes(); }

}  // namespace flute::cuda
