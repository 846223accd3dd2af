#pragma once
#include <string>
#include <vector>

#include "cuda/prefill/plan.hpp"

/// The tiles that prefill kernels are built for, as their plan names them: all that the tests know of it.
namespace flute::cuda {

struct PrefillTileFacts {
  int row_groups, tokens;  ///< at most
  int warps;               ///< that multiply
  int depth;               ///< of them stand behind each other along K, each with sums of its own
};

inline PrefillTileFacts tile_of(const PrefillPlan& plan) { return {8 * plan.quads, plan.tokens, kMultiplyingWarps, 1}; }

inline bool has_kernel_tile(const PrefillPlan& plan) { return is_prefill_tile(plan.quads, plan.tokens); }

/// A wish for each tile.
inline std::vector<PlanWish> tile_wishes() {
  std::vector<PlanWish> wishes;
  for (const int quads : {1, 2, 4}) {
    for (const int tokens : {64, 128, 256}) {
      if (is_prefill_tile(quads, tokens)) wishes.push_back({.quads = quads, .tokens = tokens});
    }
  }
  return wishes;
}

inline PlanWish wish_without_kernel() { return {.quads = 4, .tokens = 256}; }

inline bool fulfils(const PrefillPlan& plan, const PlanWish& wish) {
  return (wish.quads == 0 || plan.quads == wish.quads) && (wish.tokens == 0 || plan.tokens == wish.tokens);
}

inline std::string tile_text(const PlanWish& wish) {
  std::string text;
  if (wish.quads != 0) text += ", wish quads " + std::to_string(wish.quads);
  if (wish.tokens != 0) text += ", wish tokens " + std::to_string(wish.tokens);
  return text;
}

/// Where the stages begin in shared memory, and what a stage takes by the kernel's own reckoning.
inline int ring_of(int bits) { return kTableAddress + table_bytes(bits); }
inline int kernel_stage_bytes(const PrefillPlan& plan, int bits, int groups) {
  return prefill_stage_bytes(bits, plan.quads, plan.tokens, groups);
}
inline int kernel_scales_at(const PrefillPlan& plan, int bits) {
  return scales_in_stage(bits, plan.quads, plan.tokens);
}
/// Of the table's gaps (the free halves of its entries), those that a block uses: four for each warp, one for a stage.
inline int table_gaps(const PrefillPlan& plan) { return 4 * kMultiplyingWarps + plan.stages; }

}  // namespace flute::cuda
