// The plan of one multiply for many tokens on wgmma: like the decode plan a pure function of shape, format and device.
//
// The work is tiles of up to 128 * quads rows x `tokens` tokens. Each is worked on by a cluster of `split` blocks that
// share out K and add up their sums through each other's shared memory; clusters take tiles by turns.
#pragma once

#include "cuda/plan.hpp"

namespace flute::cuda {

struct PrefillPlan {
  int quads = 1, tokens = 64;  // a tile: pairs of 64-row wgmmas (one for each of two warpgroups), tokens
  int split = 1;               // blocks of a cluster: 1, 2, 4
  int clusters = 0;            // launched, at most one a tile
  RowDeal deal;                // row tiles
  int token_tiles = 1;
  int row_groups = 0, units = 0, group_shift = 0;
  int table_rounds = 0;  // of building the table, a warp doing four entries in each
  int stages = 0, stage_bytes = 0, shared_bytes = 0;
  bool valid = false;

  int tiles() const { return deal.blocks * token_tiles; }
};

// Invalid where the device has no wgmma.
PrefillPlan make_prefill_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                              const PlanWish& wish = {});

std::string to_string(const PrefillPlan& plan);

// Tiles that kernels are built for: the sums of 64 x 256 take 128 registers of a thread, more there are not.
constexpr int kMostSums = 256;  // quads * tokens
constexpr bool is_prefill_tile(int quads, int tokens) {
  return (quads == 1 || quads == 2 || quads == 4) && (tokens == 64 || tokens == 128 || tokens == 256) &&
         quads * tokens <= kMostSums;
}

// Two warpgroups multiply; of a third one thread fetches.
constexpr int kMultiplyingWarps = 8;
constexpr int kPrefillThreads = 32 * (kMultiplyingWarps + 4);

// A stage: activations of a unit of k, 128 bytes a token, then codes and scales of its row groups.
FLUTE_HOST_DEVICE constexpr int codes_in_stage(int tokens) { return tokens * kUnitK * 2; }
FLUTE_HOST_DEVICE constexpr int scales_in_stage(int bits, int quads, int tokens) {
  return codes_in_stage(tokens) + 8 * quads * unit_bytes(bits);
}
FLUTE_HOST_DEVICE constexpr int prefill_stage_bytes(int bits, int quads, int tokens, int groups) {
  return (scales_in_stage(bits, quads, tokens) + groups * 8 * quads * kScaleBytes + 1023) / 1024 * 1024;
}

}  // namespace flute::cuda
