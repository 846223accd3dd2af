// The plan of one multiply for many tokens on mma.sync, for cards without wgmma: a pure function of shape, format and
// device.
//
// A block has a tile of rows x tokens for itself, and all of K: nothing crosses blocks. A warp multiplies 64 rows with
// 64 tokens; the warps of a block stand along the rows, the tokens and K of its tile.
#pragma once

#include <iterator>

#include "cuda/plan.hpp"

namespace flute::cuda {

// Of a warp: as square as the registers of its sums allow, so that each code it decodes and each activation it loads
// serve as many sums as they can.
constexpr int kMmaRowGroups = 4, kMmaTokens = 64;

struct PrefillMmaTile {
  int row_warps, token_warps, k_warps;
  int clocks;  // of a step, a unit of K for each of k_warps, on an A100 (predicted: docs/kernel-notes.md)

  FLUTE_HOST_DEVICE constexpr int group_warps() const { return row_warps * token_warps; }  // those of the same K
  FLUTE_HOST_DEVICE constexpr int warps() const { return group_warps() * k_warps; }
  FLUTE_HOST_DEVICE constexpr int row_groups() const { return kMmaRowGroups * row_warps; }
  FLUTE_HOST_DEVICE constexpr int tokens() const { return kMmaTokens * token_warps; }
};

// The kernels are compiled for the number of warps along the rows; the others are arguments. Two warps a scheduler hide
// each other's latency; blocks of four are for cards with little shared memory.
constexpr PrefillMmaTile kPrefillMmaTiles[] = {
    {4, 2, 1, 2250}, {2, 4, 1, 2300}, {2, 2, 2, 2300}, {4, 1, 2, 2350},
    {2, 1, 4, 2400}, {2, 2, 1, 1400}, {4, 1, 1, 1450}, {2, 1, 2, 1450},
};
constexpr int kPrefillMmaTileCount = static_cast<int>(std::size(kPrefillMmaTiles));

struct PrefillMmaPlan {
  int tile = 0;  // of kPrefillMmaTiles
  PrefillMmaTile shape = kPrefillMmaTiles[0];
  RowDeal deal;  // row tiles
  int token_tiles = 1;
  int row_groups = 0, units = 0, group_shift = 0;
  int table_rounds = 0;  // of building the table, a warp doing four entries in each
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
FLUTE_HOST_DEVICE constexpr int low_stage_lines(int bits, int row_warps) {
  return kMmaRowGroups * row_warps * unit_bytes(bits) / kHalfLine;
}
FLUTE_HOST_DEVICE constexpr int scale_lines(int row_warps, int groups) {
  return groups * kMmaRowGroups * row_warps * kScaleBytes / kHalfLine;
}
FLUTE_HOST_DEVICE constexpr int high_stage_lines(int row_warps, int tokens, int groups) {
  return tokens + scale_lines(row_warps, groups);
}
// When K is done a warp leaves half of its sums here, or its results: so many bytes from the table on.
constexpr int kMmaEndBytes = kMmaRowGroups * kGroupRows * kMmaTokens * 2;

}  // namespace flute::cuda
