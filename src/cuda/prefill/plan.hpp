// The plan of one multiply for many tokens on wgmma: like the decode plan a pure function of shape, format and device.
//
// The work is tiles of rows x tokens, taken by turns. As many as fill the multiprocessors for a whole number of rounds
// are a block's own. Those that remain go to clusters of `split` blocks, which share out K and add up their sums
// through each other's shared memory.
#pragma once

#include <iterator>
#include <string>

#include "cuda/plan.hpp"

namespace flute::cuda {

// How the multiplying warpgroups of a block share a tile: `row_warpgroups` of them stand along its rows, 64 each;
// `depth` of these rows of warpgroups take units of K by turns and add up their sums.
struct PrefillTile {
  int row_warpgroups, depth, tokens;
  int nanoseconds;  // of a unit of K on an H100 with all its multiprocessors at work (docs/kernel-notes.md)

  FLUTE_HOST_DEVICE constexpr int warpgroups() const { return row_warpgroups * depth; }
  FLUTE_HOST_DEVICE constexpr int row_groups() const { return 4 * row_warpgroups; }
  FLUTE_HOST_DEVICE constexpr int threads() const { return 128 * (warpgroups() + 1); }  // the last warpgroup fetches
  // Registers of those who multiply and of the others: together what the block is launched with (168 x 384 threads,
  // 128 x 512, 96 x 640).
  FLUTE_HOST_DEVICE constexpr int registers() const { return warpgroups() == 4 ? 112 : warpgroups() == 3 ? 160 : 232; }
  FLUTE_HOST_DEVICE constexpr int other_registers() const { return warpgroups() == 2 ? 40 : 32; }
  FLUTE_HOST_DEVICE constexpr int pairs() const { return (tokens + 15) / 16; }  // of tiles of 8 tokens
  FLUTE_HOST_DEVICE constexpr int sums() const { return tokens / 2; }           // of a thread
  // Fragments decoded ahead of those that are multiplied, where registers allow.
  FLUTE_HOST_DEVICE constexpr int fragment_buffers() const { return sums() + 48 <= registers() - 40 ? 2 : 1; }
};

// Four warpgroups hide the latency of decoding; the sums of more than 128 tokens leave registers for two or three.
constexpr PrefillTile kPrefillTiles[] = {
    {4, 1, 32, 370},  {3, 1, 32, 308},  {2, 2, 32, 210},  {4, 1, 64, 478},  {3, 1, 64, 370},  {2, 2, 64, 257},
    {4, 1, 96, 590},  {2, 2, 96, 317},  {4, 1, 128, 738}, {3, 1, 128, 566}, {2, 2, 128, 398}, {3, 1, 136, 576},
    {2, 1, 136, 428}, {2, 1, 160, 493}, {2, 1, 192, 548}, {2, 1, 256, 714},
};
constexpr int kPrefillTileCount = static_cast<int>(std::size(kPrefillTiles));

struct PrefillPlan {
  int tile = 0;         // of kPrefillTiles
  int split = 1;        // blocks of a cluster
  int clusters = 0;     // launched
  int whole_tiles = 0;  // that one block does each; of the others a cluster's blocks share out K
  RowDeal deal;         // row tiles
  int token_tiles = 1;
  int stripe = 1, stripe_tiles = 0;  // token tiles side by side before the next rows; tiles of a stripe of all rows
  int row_groups = 0, units = 0, group_shift = 0;
  int units_each = 0, units_longer = 0;  // of a cluster's block, the first `longer` have one more
  int table_rounds = 0;                  // of building the table, a warp doing four entries in each
  int stages = 0, stage_bytes = 0, shared_bytes = 0;
  bool valid = false;

  const PrefillTile& shape() const { return kPrefillTiles[tile]; }
  int tiles() const { return deal.blocks * token_tiles; }
};

// Invalid where the device has no wgmma.
PrefillPlan make_prefill_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                              const PlanWish& wish = {});

std::string to_string(const PrefillPlan& plan);

// A stage: activations of a unit of k, 128 bytes a token, then codes and scales of its row groups.
FLUTE_HOST_DEVICE constexpr int codes_in_stage(int tokens) { return tokens * kUnitK * 2; }
FLUTE_HOST_DEVICE constexpr int scales_in_stage(int bits, const PrefillTile& tile) {
  return codes_in_stage(tile.tokens) + tile.row_groups() * unit_bytes(bits);
}
FLUTE_HOST_DEVICE constexpr int prefill_stage_bytes(int bits, const PrefillTile& tile, int groups) {
  return (scales_in_stage(bits, tile) + groups * tile.row_groups() * kScaleBytes + 1023) / 1024 * 1024;
}

// Tokens of the tiles side by side that go before the next rows: their activations (K x 2 KB) stay in L2 while all rows
// pass, and rows x tokens that all multiprocessors have at a time are about as many bytes of either.
constexpr int kStripeTokens = 1024;

// Warps that fetch.
constexpr int kFetchingWarps = 3;

// Gaps of the table (the free half of each entry's 256 bytes): four for each multiplying warp, in which its results
// change from fragments to rows of y, then one for the barriers of each stage and of each warp's sums.
constexpr int kMostPrefillStages = 16, kBarrierGap = 64;
FLUTE_HOST_DEVICE constexpr int prefill_table_bytes(int bits) {
  constexpr int kGaps = (kBarrierGap + kMostPrefillStages) * kTableStride;
  return table_bytes(bits) > kGaps ? table_bytes(bits) : kGaps;
}

}  // namespace flute::cuda
