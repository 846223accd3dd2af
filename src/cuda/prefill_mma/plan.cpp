#include "cuda/prefill_mma/plan.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace flute::cuda {
namespace {

// Nanoseconds that a plan takes: its blocks run in waves.
double nanoseconds(const PrefillMmaPlan& plan, const DeviceLimits& device) {
  constexpr int kBeginAndEnd = 3500, kAddingUp = 800;  // as an H100 was seen to take (docs/kernel-notes.md)
  const PrefillMmaTile& tile = plan.shape;
  const int adding_up = tile.k_warps == 1 ? 0 : tile.k_warps == 2 ? kAddingUp : 2 * kAddingUp;
  const double block = 1.0 * ceil_div(plan.units, tile.k_warps) * tile.nanoseconds + kBeginAndEnd + adding_up;
  return ceil_div(plan.blocks(), device.sm_count * plan.resident) * block;
}

// Places everything in shared memory, where four warps allow it of half a multiprocessor; returns whether it suffices.
bool place(PrefillMmaPlan& plan, const Format& format, const DeviceLimits& device) {
  constexpr int kLeastStages = 2, kSystemBytes = 1024;  // of each block of a multiprocessor
  const PrefillMmaTile& tile = plan.shape;
  const int table = table_lines(format.bits);
  const int low = tile.k_warps * low_stage_lines(format.bits, tile.row_groups());
  const int high = tile.k_warps * high_stage_lines(tile.row_warps, tile.tokens(), groups_of_unit(format.group_size));
  for (plan.resident = tile.warps() == 4 ? 2 : 1; plan.resident > 0; --plan.resident) {
    const int most_bytes = (device.shared_per_block + kSystemBytes) / plan.resident - kSystemBytes;
    const int room = (most_bytes - kTableAddress) / kLineBytes;
    plan.stages = std::min({kMostMmaStages, (room - table) / low, room / high});
    const int lines = std::max(table + plan.stages * low, plan.stages * high);
    plan.shared_bytes = kTableAddress + std::max(lines * kLineBytes, tile.warps() * kMmaEndBytes);
    if (plan.stages >= kLeastStages && plan.shared_bytes <= most_bytes) return true;
  }
  return false;
}

}  // namespace

PrefillMmaPlan make_prefill_mma_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                                     const PlanWish& wish) {
  PrefillMmaPlan best;
  if (shape.m < 1) return best;
  double least = 0;
  for (int index = 0; index < kPrefillMmaTileCount; ++index) {
    if (wish.tile != 0 && wish.tile != index + 1) continue;
    const PrefillMmaTile& tile = kPrefillMmaTiles[index];
    PrefillMmaPlan plan;
    plan.tile = index, plan.shape = tile;
    plan.deal = deal_rows(shape, 1, tile.row_groups());
    plan.token_tiles = ceil_div(shape.m, tile.tokens());
    plan.row_groups = ceil_div(shape.n, kGroupRows);
    plan.units = units_along_k(shape.k);
    plan.group_shift = group_shift_of(format.group_size);
    plan.table_rounds = ceil_div(table_lines(format.bits) / 4, tile.warps());
    plan.valid = place(plan, format, device);
    if (!plan.valid) continue;
    const double cost = nanoseconds(plan, device);
    if (!best.valid || cost < least) best = plan, least = cost;
  }
  return best;
}

std::string to_string(const PrefillMmaPlan& plan) {
  if (!plan.valid) return "no plan";
  const PrefillMmaTile& tile = plan.shape;
  return fmt::format(
      "prefill on mma: {} x {} blocks (rows x tokens) of {} rows and {} tokens, {} x {} x {} warps (rows x tokens x "
      "K), "
      "{} stages, {} KB of shared memory",
      plan.deal.blocks, plan.token_tiles, kGroupRows * plan.deal.longest, tile.tokens(), tile.row_warps,
      tile.token_warps, tile.k_warps, plan.stages, (plan.shared_bytes + 1023) / 1024);
}

}  // namespace flute::cuda
