// As test_decode_plan.cpp, for the plans of many tokens on cards without wgmma: a kernel believes them without looking.
#include "cuda/prefill_mma/plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "cuda/plan_cases.hpp"
#include "cuda/plan_checks.hpp"

namespace flute::cuda {
namespace {

// The checks below return what is wrong, or nothing.

std::string wrong_in_limits(const PrefillMmaPlan& plan, const PlanCase& one) {
  if (plan.tile < 0 || plan.tile >= kPrefillMmaTileCount) return "a tile without kernel";
  if (plan.shared_bytes > one.card.limits.shared_per_block) return "too much shared memory";
  // A multiprocessor has 1 KB more than a block may have, for the system: 1 KB of each block.
  if (plan.resident * (plan.shared_bytes + 1024) > one.card.limits.shared_per_block + 1024)
    return "blocks side by side";
  if (plan.resident * plan.shape.warps() > 8) return "more blocks than registers allow";
  return plan.stages < 2 || plan.stages > 3 ? "stages" : "";  // what the kernel knows to wait for
}

std::string wrong_in_sizes(const PrefillMmaPlan& plan, const PlanCase& one) {
  const int size = one.format.group_size;
  if (plan.units != units_along_k(one.shape.k)) return "units";
  if (plan.row_groups != (one.shape.n + kGroupRows - 1) / kGroupRows) return "row groups";
  for (int unit = 0; unit < plan.units && size >= kUnitK; ++unit) {
    if (unit >> plan.group_shift != unit * kUnitK / size) return "scale group";
  }
  return size < 0 && plan.units >> plan.group_shift != 0 ? "scale group" : "";
}

/// Table and every stage of every group of warps, as prefill_mma.cuh places them in halves of lines, all live at once;
/// and what is there at the end.
std::string wrong_in_memory(const PrefillMmaPlan& plan, const PlanCase& one) {
  constexpr int kLine = 256, kHalf = 128;
  const PrefillMmaTile& tile = plan.shape;
  const int bits = one.format.bits, row_groups = tile.rows * tile.row_warps, tokens = tile.tokens();
  const int groups = one.format.group_size == 32 ? 2 : 1;
  const int low = row_groups * unit_bytes(bits) / kHalf;
  const int high = tokens + groups * tile.row_warps;
  if (tile.rows * kScaleBytes > kHalf) return "a warp's scales";
  if (low != low_stage_lines(bits, tile.row_groups())) return "not the kernel's codes";
  if (high != high_stage_lines(tile.row_warps, tokens, groups)) return "not the kernel's activations and scales";
  SharedMemory memory(plan.shared_bytes);
  const auto take = [&](int line, int lines, int half) {
    for (int i = line; i < line + lines; ++i) memory.take(kTableAddress + i * kLine + half * kHalf, kHalf);
  };
  take(0, table_bytes(bits) / kLine, 0);
  for (int i = 0; i < plan.stages * tile.k_warps; ++i) {
    take(table_bytes(bits) / kLine + i * low, low, 0);
    take(i * high, high, 1);
  }
  if (!memory.fits()) return "stages";
  const int results = tile.row_warps * tile.token_warps * 64 * 64 * 2;     // of T, of those that store
  const int sums = tile.k_warps > 1 ? tile.warps() / 2 * 64 * 64 * 4 : 0;  // of half of the warps, in fp32
  if (kTableAddress + std::max(results, sums) > plan.shared_bytes) return "sums";
  return 4 * tile.warps() * plan.table_rounds >= table_bytes(bits) / kTableStride ? "" : "entries of the table";
}

/// Every output is one block's: row tiles cover each segment's rows, token tiles the tokens.
std::string wrong_in_work(const PrefillMmaPlan& plan, const PlanCase& one) {
  if (plan.deal.blocks < 1 || plan.token_tiles < 1) return "no blocks";
  if ((plan.token_tiles - 1) * plan.shape.tokens() >= one.shape.m) return "a tile without tokens";
  if (plan.token_tiles * plan.shape.tokens() < one.shape.m) return "too few tokens";
  int blocks = 0;
  for (int s = 0; s < plan.deal.segments; ++s) {
    const RowShare& share = plan.deal.share[s];
    const Range expected = row_groups_of(one.shape, s, plan.row_groups);
    std::vector<Range> rows;
    for (int i = 0; i < share.blocks; ++i) {
      const int first = share.first + share_begin(share.each, share.longer, i);
      const int count = share.each + (i < share.longer);
      if (count > plan.shape.row_groups()) return "more rows than the warps have";
      rows.push_back({first, first + count});
    }
    if (!cover_once(rows, expected.begin, expected.end)) return "row groups of a segment";
    blocks += share.blocks;
  }
  return blocks == plan.deal.blocks ? "" : "blocks";
}

/// What is wrong with a valid plan.
std::string wrong_in(const PrefillMmaPlan& plan, const PlanCase& one) {
  std::string wrong = wrong_in_limits(plan, one);
  if (wrong.empty()) wrong = wrong_in_sizes(plan, one);
  if (wrong.empty()) wrong = wrong_in_memory(plan, one);
  if (wrong.empty()) wrong = wrong_in_work(plan, one);
  return wrong;
}

/// Returns whether the case has a plan, and a right one, and prints what is not.
bool right(const PlanCase& one) {
  const PrefillMmaPlan plan = make_prefill_mma_plan(one.shape, one.format, one.card.limits, one.wish);
  const std::string wrong = plan.valid ? wrong_in(plan, one) : "none";
  EXPECT_EQ(wrong, "") << one.text(plan);
  return wrong.empty();
}

TEST(PrefillMmaPlan, ModelShapesHaveARightPlanOnEveryCard) { for_model_shapes(kMostPlanTokens, right); }

TEST(PrefillMmaPlan, RandomShapesHaveARightPlanOnEveryCard) { for_random_shapes(10000, kMostPlanTokens, right); }

// The kernels' launch bounds, barriers and shuffles, and the pieces that a thread fetches.
TEST(PrefillMmaPlan, EveryTileIsOneTheKernelsTake) {
  std::set<std::vector<int>> tiles;
  for (const PrefillMmaTile& tile : kPrefillMmaTiles) {
    EXPECT_EQ(tile.tokens() * 8 % (4 * 32 * tile.group_warps()), 0);  // activations: a quarter of them at a time
    EXPECT_LE(tile.warps(), 8);
    EXPECT_LE(tile.k_warps, 15);                                    // named barriers
    EXPECT_EQ(tile.k_warps & (tile.k_warps - 1), 0);                // sums meet by halves
    EXPECT_LE(2 * tile.row_groups() * 2, 32 * tile.group_warps());  // scales are fetched at once
    EXPECT_GT(tile.nanoseconds, 0);
    EXPECT_TRUE(tiles.insert({tile.rows, tile.row_warps, tile.token_warps, tile.k_warps}).second);
  }
}

// The laboratory overrules plans: it must measure what it asked for, or be told that there is no such plan.
TEST(PrefillMmaPlan, WishesAreFulfilledOrRefused) {
  for_random_shapes(300, kMostPlanTokens, [](PlanCase one) {
    for (int tile = 1; tile <= kPrefillMmaTileCount + 1; ++tile) {
      one.wish = {.tile = tile};
      const PrefillMmaPlan plan = make_prefill_mma_plan(one.shape, one.format, one.card.limits, one.wish);
      const bool small = one.card.limits.shared_per_block < 160 * 1024;
      EXPECT_TRUE(plan.valid == (tile <= kPrefillMmaTileCount) || small) << one.text(plan);
      if (plan.valid) {
        EXPECT_EQ(plan.tile, tile - 1);
        EXPECT_EQ(wrong_in(plan, one), "") << one.text(plan);
      }
    }
    return !testing::Test::HasFailure();
  });
}

// From so little that no tile fits: a plan, once there is one, is right and stays.
TEST(PrefillMmaPlan, AnyAmountOfSharedMemory) {
  for (const int bits : {2, 3, 4}) {
    for (const int group : {32, 128}) {
      bool before = false;
      for (int kilobytes = 0; kilobytes <= 256; ++kilobytes) {
        const PlanCase one{
            {.m = 300, .n = 5000, .k = 4096}, {bits, group, false}, {"another card", {108, kilobytes * 1024, false}}};
        const PrefillMmaPlan plan = make_prefill_mma_plan(one.shape, one.format, one.card.limits);
        ASSERT_TRUE(plan.valid || !before) << kilobytes << " KB";
        const std::string wrong = plan.valid ? wrong_in(plan, one) : "";
        ASSERT_EQ(wrong, "") << kilobytes << " KB, " << one.text(plan);
        before = plan.valid;
      }
      EXPECT_TRUE(before);
    }
  }
}

// Four warps of a multiprocessor leave half of its tensor cores' time unused: on an A100 and an A6000 large shapes get
// eight, in one block or two.
TEST(PrefillMmaPlan, LargeShapesGetEightWarps) {
  for (const Card& card : {kCards[1], kCards[2]}) {
    for (const int bits : {2, 3, 4}) {
      for (const int group : {32, 128}) {
        const PrefillMmaPlan plan =
            make_prefill_mma_plan({.m = 2048, .n = 28672, .k = 4096}, {bits, group, false}, card.limits);
        EXPECT_EQ(plan.resident * plan.shape.warps(), 8) << card.name << ": " << to_string(plan);
      }
    }
  }
}

TEST(PrefillMmaPlan, NothingIsPlannedForNoTokens) {
  for (const int m : {-1, 0}) EXPECT_FALSE(make_prefill_mma_plan({m, 4096, 4096}, {}, kCards[1].limits).valid) << m;
}

}  // namespace
}  // namespace flute::cuda
