#include "cuda/prefill/plan.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace flute::cuda {
namespace {

// Nanoseconds that a plan takes beyond what all take. The figures are what fits the times of an H100 best
// (docs/kernel-notes.md).
double nanoseconds(const PrefillPlan& plan) {
  const PrefillTile& tile = plan.shape();
  const double sums = tile.row_groups() * tile.tokens / 2048.0;
  const auto end = [&](int split) {
    return (split > 1 ? 575 * split + 3650 * sums * (split - 1) / split : 0) + 330 * sums / split;
  };
  const int blocks = plan.clusters * plan.split, rest = plan.tiles() - plan.whole_tiles;
  return plan.whole_tiles / blocks * (1.0 * plan.units * tile.nanoseconds + end(1)) +
         ceil_div(rest, plan.clusters) * (1.0 * ceil_div(plan.units, plan.split) * tile.nanoseconds + end(plan.split));
}

// Places everything in shared memory; returns whether it suffices.
bool place(PrefillPlan& plan, const Format& format, const DeviceLimits& device) {
  constexpr int kLeastStages = 3;
  const PrefillTile& tile = plan.shape();
  const int table = kTableAddress + prefill_table_bytes(format.bits);
  plan.stage_bytes = prefill_stage_bytes(format.bits, tile, groups_of_unit(format.group_size));
  plan.stages = std::min(kMostPrefillStages, (device.shared_per_block - table) / plan.stage_bytes);
  // A stage is always the same turn's. Else a turn could come to a stage whose last round the other has not yet had,
  // and take the round before that, of the same parity, for its own.
  plan.stages -= plan.stages % tile.depth;
  // Sums that others send: of the block's other turn, of the cluster's other blocks.
  const int turns = (tile.depth - 1) * ceil_div(tile.pairs(), 2);
  const int blocks = (plan.split - 1) * ceil_div(ceil_div(tile.pairs(), tile.depth), plan.split);
  const int sums = 4 * tile.warpgroups() * std::max(turns, blocks) * 1024;
  plan.shared_bytes = table + std::max(plan.stages * plan.stage_bytes, sums);
  return plan.stages >= std::max(kLeastStages, tile.depth) && plan.shared_bytes <= device.shared_per_block;
}

}  // namespace

PrefillPlan make_prefill_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                              const PlanWish& wish) {
  PrefillPlan best;
  if (!device.wgmma || shape.m < 1) return best;
  double least = 0;
  for (int index = 0; index < kPrefillTileCount; ++index) {
    if (wish.tile != 0 && wish.tile != index + 1) continue;
    const PrefillTile& tile = kPrefillTiles[index];
    for (int split = 1; split <= kMostSplit; ++split) {
      if (wish.split != 0 && wish.split != split) continue;
      const int room = wish.blocks != 0 ? wish.blocks / split : device.resident_clusters(split);
      PrefillPlan plan;
      plan.units = units_along_k(shape.k);
      if (room < 1 || plan.units < split) continue;
      plan.tile = index, plan.split = split;
      plan.units_each = plan.units / split, plan.units_longer = plan.units % split;
      plan.token_tiles = ceil_div(shape.m, tile.tokens);
      plan.stripe =
          std::min(plan.token_tiles, wish.stripe != 0 ? wish.stripe : std::max(1, kStripeTokens / tile.tokens));
      plan.row_groups = ceil_div(shape.n, kGroupRows);
      plan.group_shift = group_shift_of(format.group_size);
      plan.table_rounds = ceil_div(table_bytes(format.bits) / kTableStride / 4, 4 * tile.warpgroups());
      plan.valid = place(plan, format, device);
      if (!plan.valid) continue;
      // As few tiles as the rows take, or as many more as there is room for.
      for (const int rooms : {1, std::max(1, room / plan.token_tiles)}) {
        plan.deal = deal_rows(shape, rooms, tile.row_groups());
        plan.stripe_tiles = plan.stripe * plan.deal.blocks;
        plan.whole_tiles = split > 1 ? plan.tiles() / (room * split) * room * split : 0;
        plan.clusters = plan.whole_tiles > 0 ? room : std::min(plan.tiles(), room);
        const double cost = nanoseconds(plan);
        if (!best.valid || cost < least) best = plan, least = cost;
      }
    }
  }
  return best;
}

std::string to_string(const PrefillPlan& plan) {
  if (!plan.valid) return "no plan";
  return fmt::format(
      "prefill: {} clusters of {} blocks for {} x {} tiles ({} whole) of {} rows and {} tokens, {} x {} warpgroups, {} "
      "stages, {} KB of shared memory",
      plan.clusters, plan.split, plan.deal.blocks, plan.token_tiles, plan.whole_tiles, kGroupRows * plan.deal.longest,
      plan.shape().tokens, plan.shape().row_warpgroups, plan.shape().depth, plan.stages,
      (plan.shared_bytes + 1023) / 1024);
}

}  // namespace flute::cuda
