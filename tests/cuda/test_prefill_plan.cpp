// As test_plan.cpp, for the plans of many tokens: a kernel believes them without looking.
#include "cuda/prefill/plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "cuda/plan_cases.hpp"
#include "cuda/plan_checks.hpp"

namespace flute::cuda {
namespace {

// The checks below return what is wrong, or nothing.

/// What the launch and the kernel's template arguments demand.
std::string wrong_in_limits(const PrefillPlan& plan, const PlanCase& one) {
  if (!has_kernel_tile(plan)) return "a tile without kernel";
  if (plan.split != 1 && plan.split != 2 && plan.split != 4) return "blocks of a cluster";
  if (plan.clusters < 1 || plan.clusters > plan.tiles()) return "a cluster without a tile";
  if (plan.shared_bytes > one.card.limits.shared_per_block) return "too much shared memory";
  if (plan.stages < 3) return "too few stages";
  return "";
}

std::string wrong_in_sizes(const PrefillPlan& plan, const PlanCase& one) {
  const int size = one.format.group_size, n = one.shape.n;
  if (plan.units != units_along_k(one.shape.k)) return "units";
  if (plan.row_groups != (n + kGroupRows - 1) / kGroupRows) return "row groups";
  for (int unit = 0; unit < plan.units && size >= kUnitK; ++unit) {
    if (unit >> plan.group_shift != unit * kUnitK / size) return "scale group";
  }
  return size < 0 && plan.units >> plan.group_shift != 0 ? "scale group" : "";
}

/// Table, barriers and every stage, as prefill.cuh places them, all live at once; and the sums that a block adds up,
/// where the stages were.
std::string wrong_in_memory(const PrefillPlan& plan, const PlanCase& one) {
  constexpr int kSwizzle = 1024;  // alignment that a swizzled tensor copy demands
  const PrefillTileFacts tile = tile_of(plan);
  const int bits = one.format.bits, groups = groups_of_unit(one.format.group_size), ring = ring_of(bits);
  const int codes = tile.tokens * kUnitK * 2, scales = codes + tile.row_groups * unit_bytes(bits);
  if (scales != kernel_scales_at(plan, bits) || plan.stage_bytes != kernel_stage_bytes(plan, bits, groups)) {
    return "not the kernel's stage";
  }
  if (ring % kSwizzle != 0 || plan.stage_bytes % kSwizzle != 0) return "alignment of activations";
  if (plan.stages < tile.depth) return "fewer stages than turns";
  SharedMemory memory(plan.shared_bytes);
  memory.take(kTableAddress, table_bytes(bits));
  for (int stage = 0; stage < plan.stages; ++stage) {
    const int at = ring + stage * plan.stage_bytes;
    memory.take(at, codes);
    memory.take(at + codes, tile.row_groups * unit_bytes(bits));
    memory.take(at + scales, groups * tile.row_groups * kScaleBytes);
  }
  if (!memory.fits()) return "stages";
  const int sums = tile.depth * tile.row_groups * tile.tokens / 8 * 512;  // 16 bytes a lane for 16 rows x 8 tokens
  if (plan.split * tile.depth > 1 && ring + sums > plan.shared_bytes) return "sums";
  if (kTableAddress + table_gaps(plan) * kTableStride > ring) return "gaps of the table";
  return 4 * tile.warps * plan.table_rounds >= table_bytes(bits) / kTableStride ? "" : "entries of the table";
}

/// All tiles in the turns of all clusters, and the units of K of each block of a cluster.
std::string wrong_in_work(const PrefillPlan& plan, const PlanCase& one) {
  const int row_tiles = plan.deal.blocks, token_tiles = plan.token_tiles;
  const PrefillTileFacts tile = tile_of(plan);
  std::vector<uint8_t> covered(static_cast<size_t>(plan.row_groups) * static_cast<size_t>(token_tiles));
  for (int cluster = 0; cluster < plan.clusters; ++cluster) {
    for (int index = cluster; index < row_tiles * token_tiles; index += plan.clusters) {
      int row_tile = index / token_tiles, segment = 0;
      const int token_tile = index - row_tile * token_tiles;
      while (row_tile >= plan.deal.share[segment].blocks) {
        row_tile -= plan.deal.share[segment++].blocks;
        if (segment >= plan.deal.segments) return "a tile beyond the last segment";
      }
      const RowShare& share = plan.deal.share[segment];
      const int row = share.first + share_begin(share.each, share.longer, row_tile);
      const int rows = share.each + (row_tile < share.longer);
      if (rows < 1 || rows > tile.row_groups || rows > plan.deal.longest) return "rows of a tile";
      if (token_tile * tile.tokens >= one.shape.m) return "a tile without tokens";
      const int begin = one.shape.segments == 0 ? 0 : one.shape.segment_row[segment];
      const int end = one.shape.segments == 0 ? one.shape.n : one.shape.segment_row[segment + 1];
      if (row * kGroupRows < begin || (row + rows - 1) * kGroupRows >= end) return "rows of another table";
      for (int i = row; i < row + rows; ++i) ++covered[static_cast<size_t>(i * token_tiles + token_tile)];
    }
  }
  if (token_tiles * tile.tokens < one.shape.m) return "too few tokens";
  if (std::count(covered.begin(), covered.end(), 1) != static_cast<int64_t>(covered.size())) return "tiles";
  std::vector<Range> units;
  const int each = plan.units / plan.split, longer = plan.units - each * plan.split;
  for (int rank = 0; rank < plan.split; ++rank) {
    const int begin = share_begin(each, longer, rank);
    units.push_back({begin, begin + each + (rank < longer)});
  }
  return cover_once(units, 0, plan.units) ? "" : "units of K";
}

/// What was asked for is there.
std::string wrong_in_wish(const PrefillPlan& plan, const PlanWish& wish) {
  if (!fulfils(plan, wish)) return "tile";
  if (wish.split != 0 && plan.split != wish.split) return "split";
  return wish.blocks != 0 && plan.clusters > wish.blocks ? "clusters" : "";
}

/// Every tile can be had where there is wgmma, every split where each block gets a unit.
bool can_be(const PlanCase& one) {
  return one.card.limits.wgmma && one.shape.m >= 1 && one.wish.split <= units_along_k(one.shape.k);
}

/// Returns whether the case's plan is right, and prints what is not.
bool right(const PlanCase& one) {
  const PrefillPlan plan = make_prefill_plan(one.shape, one.format, one.card.limits, one.wish);
  std::string wrong = plan.valid == can_be(one) ? "" : "validity";
  if (plan.valid) {
    if (wrong.empty()) wrong = wrong_in_limits(plan, one);
    if (wrong.empty()) wrong = wrong_in_wish(plan, one.wish);
    if (wrong.empty()) wrong = wrong_in_sizes(plan, one);
    if (wrong.empty()) wrong = wrong_in_memory(plan, one);
    if (wrong.empty()) wrong = wrong_in_work(plan, one);
  }
  EXPECT_EQ(wrong, "") << one.text(plan);
  return wrong.empty();
}

TEST(PrefillPlan, ModelShapesHaveARightPlanOnEveryCard) { for_model_shapes(kMostPlanTokens, right); }

TEST(PrefillPlan, RandomShapesHaveARightPlanOnEveryCard) { for_random_shapes(10000, kMostPlanTokens, right); }

// The laboratory overrules plans: it must measure what it asked for, or be told that there is no such plan.
TEST(PrefillPlan, WishesAreFulfilledOrRefused) {
  std::vector<PlanWish> tiles = tile_wishes();
  tiles.emplace_back();
  for_random_shapes(200, kMostPlanTokens, [&](PlanCase one) {
    one.card = kCards[0];
    bool all_right = true;
    for (const PlanWish& tile : tiles) {
      for (const int split : {0, 1, 2, 4}) {
        for (const int blocks : {0, 1, 2, 7, 66}) {
          one.wish = tile;
          one.wish.split = split, one.wish.blocks = blocks;
          all_right = all_right && right(one);
        }
      }
    }
    EXPECT_FALSE(make_prefill_plan(one.shape, one.format, one.card.limits, wish_without_kernel()).valid);
    return all_right && !testing::Test::HasFailure();
  });
}

// A multiprocessor holds one block: clusters beyond what the card holds would wait for others to end, which take all
// their tiles first.
TEST(PrefillPlan, AllClustersRunAtOnce) {
  for_random_shapes(10000, kMostPlanTokens, [](const PlanCase& one) {
    const PrefillPlan plan = make_prefill_plan(one.shape, one.format, kCards[0].limits);
    const bool fits = plan.valid && plan.clusters * plan.split <= kCards[0].limits.sm_count;
    EXPECT_TRUE(fits) << one.text(plan);
    return fits;
  });
}

TEST(PrefillPlan, NothingIsPlannedForNoTokensOrWithoutWgmma) {
  const Shape shape{.m = 512, .n = 4096, .k = 4096};
  DeviceLimits limits = kCards[0].limits;
  EXPECT_TRUE(make_prefill_plan(shape, {}, limits).valid);
  for (const int m : {-1, 0}) EXPECT_FALSE(make_prefill_plan({m, 4096, 4096}, {}, limits).valid) << m;
  limits.wgmma = false;
  EXPECT_FALSE(make_prefill_plan(shape, {}, limits).valid);
  EXPECT_EQ(to_string(make_prefill_plan(shape, {}, limits)), "no plan");
}

// A card with less shared memory than a kernel needs gets another kernel, or none; with more, it keeps having one,
// whose barriers still have room.
TEST(PrefillPlan, SharedMemoryIsNotExceeded) {
  std::vector<PlanWish> wishes = tile_wishes();
  wishes.emplace_back();  // the last: the plan's own choice
  for (const Shape& shape : {Shape{.m = 512, .n = 4096, .k = 4096}, Shape{.m = 256, .n = 1024, .k = 32768}}) {
    for (const int bits : {2, 3, 4}) {
      for (const int group : {32, 128}) {
        std::vector<bool> before(wishes.size());
        for (int kilobytes = 0; kilobytes <= 512; ++kilobytes) {
          const DeviceLimits limits{132, kilobytes * 1024, true};
          for (size_t i = 0; i < wishes.size(); ++i) {
            const PlanCase one{shape, {bits, group, false}, {"another card", limits}, wishes[i]};
            const PrefillPlan plan = make_prefill_plan(shape, one.format, limits, wishes[i]);
            ASSERT_TRUE(plan.valid || !before[i]) << kilobytes << " KB, " << one.text(plan);
            before[i] = plan.valid;
            if (i + 1 == wishes.size()) {
              const bool any = std::find(before.begin(), before.end() - 1, true) != before.end() - 1;
              ASSERT_EQ(plan.valid, any) << kilobytes << " KB, " << one.text(plan);
            }
            if (!plan.valid) continue;
            const std::string wrong = wrong_in_limits(plan, one) + wrong_in_memory(plan, one);
            ASSERT_EQ(wrong, "") << kilobytes << " KB, " << one.text(plan);
          }
        }
        EXPECT_EQ(std::count(before.begin(), before.end(), true), wishes.size()) << bits << " bits, group " << group;
      }
    }
  }
}

}  // namespace
}  // namespace flute::cuda
