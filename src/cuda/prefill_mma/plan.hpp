// The plan of one multiply for many tokens on mma.sync, for cards without wgmma: a pure function of shape, format and
// device.
//
// A block has a tile of rows x tokens for itself, and all of K: nothing crosses blocks. Its warps stand along the rows,
// the tokens and K of the tile.
#pragma once

#include <iterator>
#include <string>

#include "cuda/plan.hpp"

namespace flute::cuda {

// Tokens of a warp with so many row groups: 32 rows x 128 tokens decode the least, 64 x 64 make smaller tiles.
FLUTE_HOST_DEVICE constexpr int mma_tokens(int rows) { return rows == 2 ? 128 : 64; }

struct PrefillMmaTile {
  int rows;  // row groups of a warp
  int row_warps, token_warps, k_warps;
  int nanoseconds;  // of a step, a unit of K for each of k_warps, on an H100 (docs/kernel-notes.md)

  FLUTE_HOST_DEVICE constexpr int group_warps() const { return row_warps * token_warps; }  // those of the same K
  FLUTE_HOST_DEVICE constexpr int warps() const { return group_warps() * k_warps; }
  FLUTE_HOST_DEVICE constexpr int row_groups() const { return rows * row_warps; }
  FLUTE_HOST_DEVICE constexpr int tokens() const { return mma_tokens(rows) * token_warps; }
};

// The kernels are compiled for a warp's rows and the number of warps along them; the others are arguments. Two warps a
// scheduler hide each other's latency: a block of four takes as long alone as beside another on the multiprocessor.
constexpr PrefillMmaTile kPrefillMmaTiles[] = {
    {2, 8, 1, 1, 1340}, {2, 4, 2, 1, 1370}, {2, 4, 1, 2, 1360},
    {2, 4, 1, 1, 1310}, {4, 2, 1, 4, 1400}, {4, 2, 1, 2, 1350},
};
constexpr int kPrefillMmaTileCount = static_cast<int>(std::size(kPrefillMmaTiles));

struct PrefillMmaPlan {
  int tile = 0;  // of kPrefillMmaTiles
  PrefillMmaTile shape = kPrefillMmaTiles[0];
  RowDeal deal;  // row tiles
  int token_tiles = 1;
  int row_groups = 0, units = 0, group_shift = 0;
  int table_rounds = 0;  // of building the table, a warp doing four entries in each
  int resident = 1;      // blocks of a multiprocessor
  int stages = 0, shared_bytes = 0;
  bool valid = false;

  int blocks() const { return deal.blocks * token_tiles; }
};

// Invalid where shared memory does not suffice for any tile.
PrefillMmaPlan make_prefill_mma_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                                     const PlanWish& wish = {});

std::string to_string(const PrefillMmaPlan& plan);

// Shared memory from the table on is lines of 256 bytes, as the table is. Low halves: the table, then for each stage
// the codes of a unit of k. High halves: for each stage the activations of a unit, a line for each token, then the
// scales. So the activations take nothing where they lie in the table's gaps. With k_warps along K each has stages of
// its own.
constexpr int kLineBytes = kTableStride, kHalfLine = kLineBytes / 2;
constexpr int kMostMmaStages = 3;
FLUTE_HOST_DEVICE constexpr int table_lines(int bits) { return table_bytes(bits) / kLineBytes; }
FLUTE_HOST_DEVICE constexpr int low_stage_lines(int bits, int row_groups) {
  return row_groups * unit_bytes(bits) / kHalfLine;
}
// A line of scales for each scale group and warp along the rows.
FLUTE_HOST_DEVICE constexpr int high_stage_lines(int row_warps, int tokens, int groups) {
  return tokens + groups * row_warps;
}
// When K is done a warp leaves half of its sums here, or its results: so many bytes from the table on.
constexpr int kMmaEndBytes = 64 * 64 * 2;

}  // namespace flute::cuda
