#include "backend/segments.hpp"

#include "base/fail.hpp"

namespace flute {

void check_segment_rows(size_t index, size_t count, int64_t rows) {
  if (index + 1 >= count || rows % kSegmentRows == 0) return;
  fail(ErrorCode::kInvalidArgument,
       "matrix: segment {}: expected a multiple of {} rows before another segment, found {}", index, kSegmentRows,
       rows);
}

void check_segments(std::span<const PackedView> segments, bool check_values) {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  if (segments.empty() || segments.size() > kMostSegments) {
    fail(kInvalid, "matrix: expected 1..{} segments, found {}", kMostSegments, segments.size());
  }
  const PackedView& first = segments.front();
  for (size_t i = 0; i < segments.size(); ++i) {
    const PackedView& segment = segments[i];
    validate(segment, fmt::format("matrix: segment {}", i), check_values);
    if (segment.k != first.k || segment.bits != first.bits || segment.group_size != first.group_size) {
      fail(kInvalid, "matrix: segment {}: expected K {}, {} bits, group size {} as in segment 0, found {}, {}, {}", i,
           first.k, first.bits, first.group_size, segment.k, segment.bits, segment.group_size);
    }
    check_segment_rows(i, segments.size(), segment.n);
  }
}

}  // namespace flute
