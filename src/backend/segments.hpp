#pragma once
#include <cstdint>
#include <span>

#include "flute/packed.hpp"

namespace flute {

constexpr size_t kMostSegments = 4;
constexpr int64_t kSegmentRows = 32;  ///< the rows before another segment are a multiple of this

/// Throws kInvalidArgument unless segment `index` of `count` may have so many rows.
void check_segment_rows(size_t index, size_t count, int64_t rows);

/// Throws kInvalidArgument unless these can be stacked along N. `check_values`: the buffers lie in host memory, so
/// codebooks and scales can be looked at.
void check_segments(std::span<const PackedView> segments, bool check_values);

}  // namespace flute
