#include "cuda/prefill/plan.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace flute::cuda {
namespace {

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Clusters that a card runs at a time: multiprocessors come in groups, whose remainders stay idle.
int resident_clusters(int sm_count, int split) { return split < 4 ? sm_count / split : sm_count * 15 / 16 / split; }

// Clocks that a plan takes, as far as they depend on its choices. A multiprocessor's tensor cores do 4096 half
// multiply-adds a clock for two; its shared memory delivers 128 bytes a clock; of the memory's 3.1 TB/s it gets 13.6
// bytes a clock, of what L2 delivers about 30.
double clocks(const PrefillPlan& plan, const Format& format) {
  const double rows = plan.deal.longest, tokens = plan.tokens, padded = 8 * plan.quads;
  const double code_bytes = rows * unit_bytes(format.bits), x_bytes = tokens * 128;
  const double tensor = padded * tokens / 2;
  const double shared = padded * (30 + tokens / 4) + tokens;
  const double memory = code_bytes / 13.6, cache = (code_bytes + x_bytes) / 30;
  const double step = std::max({tensor, shared, cache, plan.token_tiles == 1 ? memory : 0.0});
  const double sums = plan.quads * plan.tokens / 256.0;
  const double end = plan.split == 1 ? 1500 * sums : 1500 + (plan.split == 2 ? 3000 : 4500) * sums;
  return ceil_div(plan.tiles(), plan.clusters) * (ceil_div(plan.units, plan.split) * step + end);
}

// Places everything in shared memory; returns whether it suffices.
bool place(PrefillPlan& plan, const Format& format, const DeviceLimits& device) {
  constexpr int kMostStages = 16, kLeastStages = 3;
  const int table = kTableAddress + table_bytes(format.bits);
  plan.stage_bytes = prefill_stage_bytes(format.bits, plan.quads, plan.tokens, groups_of_unit(format.group_size));
  plan.stages = std::min(kMostStages, (device.shared_per_block - table) / plan.stage_bytes);
  const int sums = plan.split > 1 ? kMultiplyingWarps * 64 * plan.quads * plan.tokens : 0;
  plan.shared_bytes = table + std::max(plan.stages * plan.stage_bytes, sums);
  return plan.stages >= kLeastStages && plan.shared_bytes <= device.shared_per_block;
}

}  // namespace

PrefillPlan make_prefill_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                              const PlanWish& wish) {
  PrefillPlan best;
  if (!device.wgmma || shape.m < 1) return best;
  double least = 0;
  for (const int quads : {1, 2, 4}) {
    for (const int tokens : {64, 128, 256}) {
      if (!is_prefill_tile(quads, tokens)) continue;
      if ((wish.quads != 0 && wish.quads != quads) || (wish.tokens != 0 && wish.tokens != tokens)) continue;
      for (const int split : {1, 2, 4}) {
        PrefillPlan plan;
        plan.units = units_along_k(shape.k);
        if ((wish.split != 0 && wish.split != split) || (split > 1 && plan.units < split)) continue;
        const int room = wish.blocks != 0 ? wish.blocks : resident_clusters(device.sm_count, split);
        plan.quads = quads, plan.tokens = tokens, plan.split = split;
        plan.token_tiles = ceil_div(shape.m, tokens);
        plan.deal = deal_rows(shape, std::max(1, room / plan.token_tiles), 8 * quads);
        plan.clusters = std::min(plan.tiles(), room);
        plan.row_groups = ceil_div(shape.n, kGroupRows);
        plan.group_shift = group_shift_of(format.group_size);
        plan.table_rounds = ceil_div(table_bytes(format.bits) / kTableStride / 4, kMultiplyingWarps);
        plan.valid = place(plan, format, device);
        const double cost = clocks(plan, format);
        if (plan.valid && (!best.valid || cost < least)) best = plan, least = cost;
      }
    }
  }
  return best;
}

std::string to_string(const PrefillPlan& plan) {
  if (!plan.valid) return "no plan";
  return fmt::format(
      "prefill: {} clusters of {} blocks for {} x {} tiles of {} rows and {} tokens, {} stages, {} KB of shared memory",
      plan.clusters, plan.split, plan.deal.blocks, plan.token_tiles, 16 * plan.deal.longest, plan.tokens, plan.stages,
      (plan.shared_bytes + 1023) / 1024);
}

}  // namespace flute::cuda
