// The plan of one multiply for few tokens: a pure function of shape, format and device, printable, no GPU needed.
//
// The work is a rectangle of row groups (16 rows) x units of k (layout.hpp). A thread block takes a contiguous range of
// row groups of one segment; its warps share them out, `rows` at most each, and take the units of K in turn.
#pragma once

#include <string>

#include "cuda/plan.hpp"

namespace flute::cuda {

constexpr int kMaxDecodeTokens = 64;

struct DecodePlan {
  int tiles_m = 1;          // 8-token tiles of the tensor-core instruction: 1, 2, 4, 8
  int rows = 1, depth = 1;  // of a step of one warp: row groups, units
  RowDeal deal;
  int row_warps = 1, k_warps = 16;  // warps along the block's rows and along K
  int row_warps_inverse = 256;      // a * this / 256 = a / row_warps, for a < 128
  int row_groups = 0, units = 0, groups = 0;
  int group_shift = 0;   // group_shift_of
  int table_rounds = 0;  // of building the table, a warp doing four entries in each
  // Shared memory, from the table on (shared_bytes: all of it). A warp has two stages of a step each: codes, scales,
  // activations.
  int ring_at = 0, stage_bytes = 0, shared_bytes = 0;
  int sum_pairs_shift = 0;  // pairs of tokens of a tile that are there, rounded up: log2
  bool valid = false;

  int warps() const { return k_warps * row_warps; }
};

DecodePlan make_decode_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                            const PlanWish& wish = {});

std::string to_string(const DecodePlan& plan);

// Warps of a block. From 9 tokens on fewer warps with more registers each are faster: more row groups share each load
// of activations, and the compiler has room to have more lookups under way.
FLUTE_HOST_DEVICE constexpr int max_warps(int tiles_m) { return tiles_m == 1 ? 16 : tiles_m == 2 ? 12 : 8; }
// Row groups of a warp: each load of activations serves so many. Registers set the limits: with more, kernels spill.
FLUTE_HOST_DEVICE constexpr int max_rows(int tiles_m) { return tiles_m <= 4 ? 7 : 4; }
// Two units a step where few row groups leave less than about 40 KB of codes in flight.
FLUTE_HOST_DEVICE constexpr int max_depth(int bits, int tiles_m, int rows) {
  return rows * bits <= 9 && (tiles_m == 1 || (tiles_m == 2 && rows <= 2)) ? 2 : 1;
}
// A stage: codes and scales of `rows` row groups and `depth` units, then activations.
FLUTE_HOST_DEVICE constexpr int x_in_stage(int bits, int rows, int depth, int groups) {
  return rows * depth * unit_bytes(bits) + (rows * depth * groups * kScaleBytes + 127) / 128 * 128;
}

}  // namespace flute::cuda
