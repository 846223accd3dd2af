#include "cuda/decode/plan.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace flute::cuda {

namespace {

constexpr int kMaxRowWarps = 4;

// As many warps as there may be, but such that the steps of K deal out evenly: of equal rounds the fewest warps, which
// leaves none idle in the last one.
int choose_warps(int steps, int most) { return ceil_div(steps, ceil_div(steps, most)); }

// Deals out row groups and K to up to `most_warps` warps of up to `most_rows` row groups, and places the table and the
// warps' stages. Returns whether shared memory suffices.
bool place(DecodePlan& plan, const Shape& shape, const Format& format, const DeviceLimits& device, const PlanWish& wish,
           int most_rows, int most_warps) {
  const int most_row_warps = std::min(most_warps, kMaxRowWarps);
  plan.deal = deal_rows(shape, wish.blocks != 0 ? wish.blocks : device.sm_count, most_rows * most_row_warps);
  // The least work for a warp, where a step costs about as much beside its row groups as one of them.
  double least = 0;
  for (int across = 1; across <= most_row_warps; ++across) {
    const int rows = ceil_div(plan.deal.longest, across);
    if (rows > most_rows) continue;
    const double work = static_cast<double>((rows + 1) * across) / (most_warps / across * across);
    if (least == 0 || (wish.row_warps != 0 ? across <= wish.row_warps : work < least)) {
      least = work, plan.row_warps = across, plan.rows = rows;
    }
  }
  plan.row_warps_inverse = ceil_div(256, plan.row_warps);
  const int most_k_warps = most_warps / plan.row_warps;
  const auto place_steps = [&](int depth) {
    plan.depth = depth;
    plan.k_warps = choose_warps(plan.units / depth, most_k_warps);
    plan.table_rounds = ceil_div(table_bytes(format.bits) / kTableStride / 4, plan.warps());
    plan.ring_at = table_bytes(format.bits);
    const int x_at = x_in_stage(format.bits, plan.rows, depth, groups_of_unit(format.group_size));
    const int sums = plan.rows * plan.tiles_m * 128 << plan.sum_pairs_shift;  // of a warp, where its two stages were
    plan.stage_bytes = std::max(x_at + depth * shape.m * kUnitK * 2, ceil_div(sums, 256) * 128);
    plan.shared_bytes = kTableAddress + plan.ring_at + plan.warps() * 2 * plan.stage_bytes;
    return plan.shared_bytes <= device.shared_per_block;
  };
  // Two units a step gain where K is long, and lose where a warp has few steps: the first one comes later.
  const bool deep = wish.depth != 0 ? wish.depth > 1 : plan.units >= 8 * most_k_warps;
  const int depth = deep && plan.units % 2 == 0 ? max_depth(format.bits, plan.tiles_m, plan.rows) : 1;
  return place_steps(depth) || (depth > 1 && place_steps(1));
}

}  // namespace

DecodePlan make_decode_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                            const PlanWish& wish) {
  DecodePlan plan;
  if (shape.m < 1 || shape.m > kMaxDecodeTokens) return plan;
  plan.tiles_m = shape.m <= 8 ? 1 : shape.m <= 16 ? 2 : shape.m <= 32 ? 4 : 8;
  plan.sum_pairs_shift = shape.m <= 2 ? 0 : shape.m <= 4 ? 1 : 2;
  plan.row_groups = ceil_div(shape.n, kGroupRows);
  plan.units = units_along_k(shape.k);
  plan.groups = tiled_groups(format.group_size, shape.k);
  plan.group_shift = group_shift_of(format.group_size);

  const auto wished = [](int most, int wish_for) { return wish_for != 0 ? std::min(most, wish_for) : most; };
  const int most_warps = wished(max_warps(plan.tiles_m), wish.warps);
  const int most_rows = wished(max_rows(plan.tiles_m), wish.rows);
  const auto fits = [&](int rows, int warps) { return place(plan, shape, format, device, wish, rows, warps); };
  plan.valid = fits(most_rows, most_warps);
  if (plan.valid) return plan;
  // A card with little shared memory, many tokens: fewer row groups or warps, such that the most is under way in all
  // warps together, where a step costs about as much beside its row groups as one of them.
  double best = 0;
  int best_rows = 1, best_warps = 1;
  for (int warps = most_warps; warps > 0; --warps) {
    for (int rows = most_rows; rows > 0; --rows) {
      const double under_way = static_cast<double>(warps * rows) / (rows + 1);
      if (under_way > best && fits(rows, warps)) best = under_way, best_rows = rows, best_warps = warps;
    }
  }
  plan.valid = fits(best_rows, best_warps);
  return plan;
}

std::string to_string(const DecodePlan& plan) {
  if (!plan.valid) return "no plan";
  return fmt::format(
      "decode: {} blocks of {} x {} warps (rows x K), {} x 16 rows and {} x 64 k a step, {} x 8 tokens, {} KB of "
      "shared memory",
      plan.deal.blocks, plan.row_warps, plan.k_warps, plan.rows, plan.depth, plan.tiles_m,
      (plan.shared_bytes + 1023) / 1024);
}

}  // namespace flute::cuda
