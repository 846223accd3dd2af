// What a decode launch is given.
#pragma once

#include "plan.hpp"

namespace flute::cuda {

// Passed by value. Row segment s is rows [segment_row[s], segment_row[s + 1]), with a codebook of its own; boundaries
// are multiples of 16 rows.
struct DecodeArguments {
  const uint8_t* codes;
  const uint8_t* scales;  // T, [row groups][scale groups][16]
  const void* codebooks;  // T, [segments][2^bits]
  const uint8_t* x;       // T, [m][k], 16-byte aligned
  void* y;                // T, [m][n]
  int m, n, k, group, groups;
  int segments, segment_row[kMaxSegments + 1];
  bool dependent_launch;
  DecodePlan plan;
};

}  // namespace flute::cuda
