// What a decode launch is given.
#pragma once

#include <cuda.h>

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

// What the copy engine is told: one map per number of row groups in a pass, so that each of codes, scales and
// activations of a stage is one instruction. If K is no multiple of 64, 64 bytes behind X must be readable.
struct DecodeMaps {
  CUtensorMap codes[kMaxPassRows], scales[kMaxPassRows], x;
};

}  // namespace flute::cuda
