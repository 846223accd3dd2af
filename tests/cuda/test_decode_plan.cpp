// A kernel believes its plan without looking: a wrong one computes an output twice or never, or writes where it must
// not.
#include "cuda/decode/plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "cuda/plan_cases.hpp"
#include "cuda/plan_checks.hpp"

namespace flute::cuda {
namespace {

// The checks below return what is wrong, or nothing.

/// The row groups of every block and warp, and the units of every warp along K, as decode.cuh reads a plan.
std::string wrong_in_work(const DecodePlan& plan, const PlanCase& one) {
  std::vector<Range> rows;
  int blocks = 0;
  for (int s = 0; s < plan.deal.segments; ++s) {
    const RowShare& share = plan.deal.share[s];
    const Range expected = row_groups_of(one.shape, s, plan.row_groups);
    std::vector<Range> of_segment;
    for (int block = 0; block < share.blocks; ++block) {
      const int first = share.first + share_begin(share.each, share.longer, block);
      const int count = share.each + (block < share.longer);
      // Warps side by side; the division as the kernel does it.
      const int each = count * plan.row_warps_inverse >> 8, longer = count - each * plan.row_warps;
      for (int warp = 0; warp < plan.row_warps; ++warp) {
        const int mine = each + (warp < longer), at = first + share_begin(each, longer, warp);
        if (mine < 0 || mine > plan.rows) return "row groups of a warp";
        if (mine > 0) of_segment.push_back({at, at + mine});
      }
    }
    if (!cover_once(of_segment, expected.begin, expected.end)) return "row groups of a segment";
    blocks += share.blocks;
  }
  if (blocks != plan.deal.blocks) return "blocks";
  for (int warp = 0; warp < plan.warps(); ++warp) {
    if (warp * plan.row_warps_inverse >> 8 != warp / plan.row_warps) return "a warp's place";
  }
  std::vector<Range> steps;
  for (int warp = 0; warp < plan.k_warps; ++warp) {
    if (warp * plan.depth >= plan.units) return "a warp without a step";
    for (int unit = warp * plan.depth; unit < plan.units; unit += plan.k_warps * plan.depth) {
      steps.push_back({unit, unit + plan.depth});  // a step takes all its units to be there
    }
  }
  return cover_once(steps, 0, plan.units) ? "" : "units of the warps";
}

/// Table and every warp's two stages of codes, scales and activations, as decode.cuh places them, all live at once; and
/// the sums, where the warp's own stages were.
std::string wrong_in_memory(const DecodePlan& plan, const PlanCase& one) {
  constexpr int kLine = 128;  // a bank each; the kernel's swizzles flip bits of addresses below it
  const int groups = groups_of_unit(one.format.group_size);
  SharedMemory memory(plan.shared_bytes);
  memory.take(kTableAddress, table_bytes(one.format.bits));
  const int codes = plan.rows * plan.depth * unit_bytes(one.format.bits);
  const int x = x_in_stage(one.format.bits, plan.rows, plan.depth, groups);
  const int x_bytes = plan.depth * one.shape.m * kUnitK * 2;
  if (x < codes + plan.rows * plan.depth * groups * kScaleBytes) return "activations in the scales";
  if (x % kLine != 0 || plan.stage_bytes % kLine != 0 || plan.ring_at % kLine != 0) return "alignment of activations";
  if (x + x_bytes > plan.stage_bytes) return "a stage";
  for (int stage = 0; stage < 2 * plan.warps(); ++stage) {
    memory.take(kTableAddress + plan.ring_at + stage * plan.stage_bytes, plan.stage_bytes);
  }
  if (!memory.fits()) return "stages";
  const int pairs = 1 << plan.sum_pairs_shift;
  if (2 * pairs < std::min(one.shape.m, 8)) return "pairs of tokens";
  if (plan.rows * plan.tiles_m * pairs * kLine > 2 * plan.stage_bytes) return "sums";
  return 4 * plan.warps() * plan.table_rounds >= table_bytes(one.format.bits) / kTableStride ? ""
                                                                                             : "entries of the table";
}

std::string wrong_in_groups(const DecodePlan& plan, const PlanCase& one) {
  const int size = one.format.group_size;
  if (plan.groups != tiled_groups(size, one.shape.k) || plan.units != units_along_k(one.shape.k)) return "sizes";
  for (int unit = 0; unit < plan.units && size >= kUnitK; ++unit) {
    if (unit >> plan.group_shift != unit * kUnitK / size) return "scale group";
  }
  return size < 0 && plan.units >> plan.group_shift != 0 ? "scale group" : "";
}

std::string wrong_in_limits(const DecodePlan& plan, const PlanCase& one) {
  if (!plan.valid) return "none fits";
  if (plan.shared_bytes > one.card.limits.shared_per_block) return "too much shared memory";
  if (plan.warps() < 1 || plan.warps() > max_warps(plan.tiles_m)) return "more warps than the kernel is compiled for";
  if (plan.deal.blocks < 1) return "no blocks";
  if (8 * plan.tiles_m < one.shape.m) return "too few tokens";
  return "";
}

/// Returns whether the case's plan is right, and prints what is not.
bool right(const PlanCase& one) {
  const DecodePlan plan = make_decode_plan(one.shape, one.format, one.card.limits);
  std::string wrong = wrong_in_limits(plan, one);
  if (wrong.empty()) wrong = wrong_in_groups(plan, one);
  if (wrong.empty()) wrong = wrong_in_memory(plan, one);
  if (wrong.empty()) wrong = wrong_in_work(plan, one);
  EXPECT_EQ(wrong, "") << one.text(plan);
  return wrong.empty();
}

TEST(Plan, ModelShapesHaveARightPlanOnEveryCard) { for_model_shapes(kMaxDecodeTokens, right); }

TEST(Plan, RandomShapesHaveARightPlanOnEveryCard) { for_random_shapes(10000, kMaxDecodeTokens, right); }

// A plan is a function of its arguments alone, so a call may be planned ahead; more tokens than a launch takes are the
// caller's to split.
TEST(Plan, NothingIsPlannedForNoTokensOrTooMany) {
  for (const int m : {-1, 0, kMaxDecodeTokens + 1}) {
    EXPECT_FALSE(make_decode_plan({m, 4096, 4096}, {}, kCards[0].limits).valid) << m;
  }
}

}  // namespace
}  // namespace flute::cuda
