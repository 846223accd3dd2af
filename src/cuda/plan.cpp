#include "cuda/plan.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace flute::cuda {

namespace {

// As many warps as the kernel may have, but such that the steps of K deal out evenly: of equal rounds the fewest warps,
// which leaves none idle in the last one.
int choose_warps(int steps, int most) {
  const int rounds = (steps + most - 1) / most;
  return (steps + rounds - 1) / rounds;
}

// Deals out the steps of K to warps and places the table, the sums and the warps' stages.
void place_shared(DecodePlan& plan, const Shape& shape, const Format& format, const PlanWish& wish) {
  const int steps = (plan.units + plan.depth - 1) / plan.depth;
  const int most_warps = max_warps(plan.tiles_m);
  plan.warps = wish.warps != 0 ? std::min(wish.warps, most_warps) : choose_warps(steps, most_warps);
  plan.table_rounds = (table_bytes(format.bits) / kTableStride / 4 + plan.warps - 1) / plan.warps;
  const auto to_128 = [](int bytes) { return (bytes + 127) / 128 * 128; };
  const int codes = plan.rows * plan.depth * unit_bytes(format.bits);
  plan.x_in_stage = codes + to_128(plan.rows * plan.depth * groups_of_unit(format.group_size) * kScaleBytes);
  plan.stage_bytes = plan.x_in_stage + plan.depth * shape.m * kUnitK * 2;
  const int lines = plan.warps * std::min(kSumTiles, plan.rows * plan.tiles_m) * 4;
  plan.ring_at = table_bytes(format.bits);
  if (lines <= table_bytes(format.bits) / kTableStride) {
    plan.sums_at = 128, plan.sum_pitch = kTableStride;
  } else {
    plan.sums_at = plan.ring_at, plan.sum_pitch = 128;
    plan.ring_at += lines * 128;
  }
  plan.shared_bytes = plan.ring_at + plan.warps * 2 * plan.stage_bytes;
}

}  // namespace

DecodePlan make_decode_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                            const PlanWish& wish) {
  DecodePlan plan;
  if (shape.m < 1 || shape.m > kMaxDecodeTokens) return plan;
  plan.tiles_m = shape.m <= 8 ? 1 : shape.m <= 16 ? 2 : shape.m <= 32 ? 4 : 8;
  plan.row_groups = (shape.n + kGroupRows - 1) / kGroupRows;
  plan.units = units_along_k(shape.k);
  plan.groups = tiled_groups(format.group_size, shape.k);
  if (format.group_size >= kUnitK) {
    plan.group_shift = 0;
    while (kUnitK << plan.group_shift < format.group_size) ++plan.group_shift;
  }
  plan.blocks = std::min(plan.row_groups, wish.blocks != 0 ? wish.blocks : device.sm_count);
  plan.rows_each = plan.row_groups / plan.blocks, plan.rows_longer = plan.row_groups % plan.blocks;
  const int longest = plan.rows_each + (plan.rows_longer != 0);
  // Passes as even as they can be, of as many row groups as fit, and steps of two units where those fit too.
  int most = wish.rows != 0 ? std::min(wish.rows, max_rows(plan.tiles_m)) : max_rows(plan.tiles_m);
  do {
    const int passes = (longest + most - 1) / most;
    plan.rows = (longest + passes - 1) / passes;
    plan.depth = plan.units % 2 != 0 || wish.depth == 1 ? 1 : max_depth(format.bits, plan.tiles_m, plan.rows);
    place_shared(plan, shape, format, wish);
    if (plan.depth > 1 && plan.shared_bytes > device.shared_per_block) {
      plan.depth = 1;
      place_shared(plan, shape, format, wish);
    }
  } while (plan.shared_bytes > device.shared_per_block && --most > 0);
  plan.valid = plan.shared_bytes <= device.shared_per_block;
  return plan;
}

std::string to_string(const DecodePlan& plan) {
  return fmt::format(
      "decode: {} blocks of {} warps, passes of {} x 16 rows, steps of {} x 64 k, {} x 8 tokens, {} KB of "
      "shared memory",
      plan.blocks, plan.warps, plan.rows, plan.depth, plan.tiles_m, (plan.shared_bytes + 1023) / 1024);
}

}  // namespace flute::cuda
