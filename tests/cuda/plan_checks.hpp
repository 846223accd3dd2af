#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/plan.hpp"

/// What the tests of all plans check with.
namespace flute::cuda {

struct Range {
  int64_t begin, end;
};

/// Do the ranges, in any order, cover [begin, end) once?
inline bool cover_once(std::vector<Range> ranges, int64_t begin, int64_t end) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (const Range& range : ranges) {
    if (range.begin != begin || range.end <= range.begin) return false;
    begin = range.end;
  }
  return begin == end;
}

/// The row groups of a segment, of `all` in the matrix.
inline Range row_groups_of(const Shape& shape, int segment, int all) {
  if (shape.segments == 0) return {0, all};
  return {shape.segment_row[segment] / kGroupRows, ceil_div(shape.segment_row[segment + 1], kGroupRows)};
}

/// Parts of a block's shared memory that are in use at the same time, in the 16-byte pieces that kernels copy.
class SharedMemory {
 public:
  explicit SharedMemory(int bytes) : used_(static_cast<size_t>(std::max(bytes, 0)) / kPiece) {}
  void take(int begin, int bytes) {
    const auto end = static_cast<size_t>(begin + bytes) / kPiece;
    fits_ = fits_ && begin >= 0 && begin % kPiece == 0 && bytes % kPiece == 0 && end <= used_.size();
    for (size_t i = static_cast<size_t>(begin) / kPiece; fits_ && i < end; ++i) fits_ = used_[i]++ == 0;
  }
  bool fits() const { return fits_; }  ///< nothing lies outside or on something else

 private:
  static constexpr int kPiece = 16;
  std::vector<uint8_t> used_;
  bool fits_ = true;
};

}  // namespace flute::cuda
