// As test_decode_plan.cpp, for the plans of many tokens: a kernel believes them without looking.
#include "cuda/prefill/plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "cuda/plan_cases.hpp"
#include "cuda/plan_checks.hpp"

namespace flute::cuda {
namespace {

// The checks below return what is wrong, or nothing.

/// What the launch and the kernel's template arguments demand. Of all blocks a multiprocessor holds one, and clusters
/// beyond what the card holds would wait for others, which take all their tiles first.
std::string wrong_in_limits(const PrefillPlan& plan, const PlanCase& one) {
  const DeviceLimits& limits = one.card.limits;
  if (plan.tile < 0 || plan.tile >= kPrefillTileCount) return "a tile without kernel";
  if (plan.split < 1 || plan.split > kMostSplit) return "blocks of a cluster";
  if (plan.split > plan.units) return "a block without units of K";
  const int room = one.wish.blocks != 0 ? one.wish.blocks / plan.split : limits.resident_clusters(plan.split);
  if (plan.clusters < 1 || plan.clusters > room) return "clusters";
  if (plan.shared_bytes > limits.shared_per_block) return "too much shared memory";
  return plan.stages < 3 ? "too few stages" : "";
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

/// Of the sums that warps get from others, where the stages were: first from the same rows' other turns, then from the
/// same warps of the cluster's other blocks. Each 16 tokens, 1 KB for 16 rows, are one's own by turns.
int sum_bytes(const PrefillTile& tile, int split) {
  const int pieces = (tile.tokens + 15) / 16, of_turn = (pieces + tile.depth - 1) / tile.depth;
  const int of_block = (of_turn + split - 1) / split;
  return 4 * tile.warpgroups() * std::max((tile.depth - 1) * of_turn, (split - 1) * of_block) * 1024;
}

/// Table, barriers and every stage, as prefill.cuh places them, all live at once; and the sums.
std::string wrong_in_memory(const PrefillPlan& plan, const PlanCase& one) {
  constexpr int kSwizzle = 1024;  // alignment that a swizzled tensor copy demands
  const PrefillTile& tile = plan.shape();
  const int bits = one.format.bits, groups = groups_of_unit(one.format.group_size);
  const int ring = kTableAddress + prefill_table_bytes(bits);
  const int codes = tile.tokens * kUnitK * 2, scales = codes + tile.row_groups() * unit_bytes(bits);
  if (codes != codes_in_stage(tile.tokens) || scales != scales_in_stage(bits, tile)) return "not the kernel's stage";
  if (plan.stage_bytes != prefill_stage_bytes(bits, tile, groups)) return "not the kernel's stages";
  if (ring % kSwizzle != 0 || plan.stage_bytes % kSwizzle != 0) return "alignment of activations";
  if (plan.stages < tile.depth) return "fewer stages than turns";
  // A turn tells rounds of a stage by their parity: it must see each.
  if (plan.stages % tile.depth != 0) return "stages that change turns";
  SharedMemory memory(plan.shared_bytes);
  memory.take(kTableAddress, prefill_table_bytes(bits));
  for (int stage = 0; stage < plan.stages; ++stage) {
    const int at = ring + stage * plan.stage_bytes;
    memory.take(at, codes);
    memory.take(at + codes, tile.row_groups() * unit_bytes(bits));
    memory.take(at + scales, groups * tile.row_groups() * kScaleBytes);
  }
  if (!memory.fits()) return "stages";
  if (ring + sum_bytes(tile, plan.split) > plan.shared_bytes) return "sums";
  const int barriers = std::max(plan.stages, 4 * tile.warpgroups());  // of stages, and of each warp's sums
  if ((kBarrierGap + barriers) * kTableStride > prefill_table_bytes(bits)) return "barriers in the table's gaps";
  const int entries = table_bytes(bits) / kTableStride;  // a warp does four in each round
  return 16 * tile.warpgroups() * plan.table_rounds >= entries ? "" : "entries of the table";
}

/// A block's turns: the tiles that it has for itself, then those of its cluster, as prefill.cuh goes through them.
struct Turns {
  std::vector<int> whole, shared;
};

Turns turns_of(const PrefillPlan& plan, int block) {
  Turns turns;
  const int cluster = block / plan.split, blocks = plan.clusters * plan.split;
  int index = plan.whole_tiles > 0 ? block : cluster;
  while (index < plan.whole_tiles) {
    turns.whole.push_back(index);
    index += blocks;
    if (index >= plan.whole_tiles) index = plan.whole_tiles + cluster;
  }
  for (; index < plan.tiles(); index += plan.clusters) turns.shared.push_back(index);
  return turns;
}

/// The tile's rows, which must be of one segment, and its tokens.
std::string wrong_in_tile(const PrefillPlan& plan, const PlanCase& one, int index) {
  const int stripe = index / plan.stripe_tiles, first = stripe * plan.stripe;
  const int width = std::min(plan.stripe, plan.token_tiles - first), left = index - stripe * plan.stripe_tiles;
  int row_tile = left / width, segment = 0;
  const int token_tile = first + left - row_tile * width;
  while (row_tile >= plan.deal.share[segment].blocks) {
    row_tile -= plan.deal.share[segment++].blocks;
    if (segment >= plan.deal.segments) return "a tile beyond the last segment";
  }
  const RowShare& share = plan.deal.share[segment];
  const int row = share.first + share_begin(share.each, share.longer, row_tile);
  const int rows = share.each + (row_tile < share.longer);
  if (rows < 1 || rows > plan.shape().row_groups() || rows > plan.deal.longest) return "rows of a tile";
  if (token_tile * plan.shape().tokens >= one.shape.m) return "a tile without tokens";
  const int begin = one.shape.segments == 0 ? 0 : one.shape.segment_row[segment];
  const int end = one.shape.segments == 0 ? one.shape.n : one.shape.segment_row[segment + 1];
  return row * kGroupRows < begin || (row + rows - 1) * kGroupRows >= end ? "rows of another table" : "";
}

/// Rows of all segments are dealt to row tiles, each once.
bool rows_cover(const PrefillPlan& plan) {
  std::vector<Range> rows;
  int blocks = 0;
  for (int s = 0; s < plan.deal.segments; ++s) {
    const RowShare& share = plan.deal.share[s];
    blocks += share.blocks;
    for (int i = 0; i < share.blocks; ++i) {
      rows.push_back({share.first + share_begin(share.each, share.longer, i),
                      share.first + share_begin(share.each, share.longer, i + 1)});
    }
  }
  return blocks == plan.deal.blocks && cover_once(rows, 0, plan.row_groups);
}

/// Every output is somebody's, once: row tiles cover the rows, token tiles the tokens; each tile is in the turns of one
/// block, or in those of one cluster, whose blocks' units cover K.
std::string wrong_in_work(const PrefillPlan& plan, const PlanCase& one) {
  if (!rows_cover(plan)) return "rows";
  if (plan.token_tiles * plan.shape().tokens < one.shape.m) return "too few tokens";
  if (plan.whole_tiles < 0 || plan.whole_tiles > plan.tiles()) return "whole tiles";
  if (plan.split == 1 && plan.whole_tiles != 0) return "whole tiles where all are";
  std::vector<uint8_t> done(static_cast<size_t>(plan.tiles()));
  for (int cluster = 0; cluster < plan.clusters; ++cluster) {
    const Turns first = turns_of(plan, cluster * plan.split);
    for (int rank = 0; rank < plan.split; ++rank) {
      const Turns turns = turns_of(plan, cluster * plan.split + rank);
      // All blocks of a cluster meet as often, or they wait for ever: after each tile whose sums they add up.
      if (turns.whole.size() != first.whole.size() || turns.shared != first.shared) return "blocks of a cluster";
      for (const int index : turns.whole) ++done[static_cast<size_t>(index)];
    }
    for (const int index : first.shared) ++done[static_cast<size_t>(index)];
    if (first.whole.empty() && first.shared.empty()) return "a cluster without a tile";
  }
  for (int index = 0; index < plan.tiles(); ++index) {
    if (done[static_cast<size_t>(index)] != 1) return "tiles";
    if (const std::string wrong = wrong_in_tile(plan, one, index); !wrong.empty()) return wrong;
  }
  std::vector<Range> units;
  for (int rank = 0; rank < plan.split; ++rank) {
    const int begin = share_begin(plan.units_each, plan.units_longer, rank);
    units.push_back({begin, begin + plan.units_each + (rank < plan.units_longer)});
  }
  return cover_once(units, 0, plan.units) ? "" : "units of K";
}

/// Every tile can be had where there is wgmma, every split where each block gets a unit, there are so many and their
/// sums have room.
bool can_be(const PlanCase& one) {
  const PlanWish& wish = one.wish;
  if (wish.tile > 0 && wish.tile <= kPrefillTileCount && wish.split > 0) {
    const int sums = sum_bytes(kPrefillTiles[wish.tile - 1], wish.split);
    const int table = kTableAddress + prefill_table_bytes(one.format.bits);
    if (table + sums > one.card.limits.shared_per_block) return false;
  }
  return one.card.limits.wgmma && one.shape.m >= 1 && wish.tile <= kPrefillTileCount &&
         wish.split <= units_along_k(one.shape.k) && (wish.blocks == 0 || wish.blocks >= wish.split);
}

/// Returns whether the case's plan is right, and prints what is not.
bool right(const PlanCase& one) {
  const PrefillPlan plan = make_prefill_plan(one.shape, one.format, one.card.limits, one.wish);
  std::string wrong = plan.valid == can_be(one) ? "" : "validity";
  if (plan.valid) {
    if (wrong.empty()) wrong = wrong_in_limits(plan, one);
    if (wrong.empty() && one.wish.tile != 0 && plan.tile != one.wish.tile - 1) wrong = "another tile than wished";
    if (wrong.empty() && one.wish.split != 0 && plan.split != one.wish.split) wrong = "another split than wished";
    if (wrong.empty()) wrong = wrong_in_sizes(plan, one);
    if (wrong.empty()) wrong = wrong_in_memory(plan, one);
    if (wrong.empty()) wrong = wrong_in_work(plan, one);
  }
  EXPECT_EQ(wrong, "") << one.text(plan);
  return wrong.empty();
}

TEST(PrefillPlan, ModelShapesHaveARightPlanOnEveryCard) { for_model_shapes(kMostPlanTokens, right); }

TEST(PrefillPlan, RandomShapesHaveARightPlanOnEveryCard) { for_random_shapes(10000, kMostPlanTokens, right); }

/// Wishes for each tile, and none.
std::vector<PlanWish> tile_wishes() {
  std::vector<PlanWish> wishes;
  for (int tile = 0; tile <= kPrefillTileCount; ++tile) wishes.push_back({.tile = tile});
  return wishes;
}

// A launch's registers are what the compiler gives all its threads; a block's warpgroups share them out anew, and would
// wait for ever for more than there are.
TEST(PrefillPlan, EveryTileCanBeLaunched) {
  constexpr int kRegisters = 65536;  // of a multiprocessor
  for (int index = 0; index < kPrefillTileCount; ++index) {
    const PrefillTile& tile = kPrefillTiles[index];
    const int launched = kRegisters / tile.threads() / 8 * 8;
    EXPECT_LE(tile.threads(), 1024) << index;
    EXPECT_EQ(tile.warpgroups() * tile.registers() + tile.other_registers(), launched * (tile.warpgroups() + 1))
        << index;
    EXPECT_LE(tile.other_registers(), launched) << index;
    EXPECT_GE(tile.registers(), launched) << index;
    for (const int registers : {tile.registers(), tile.other_registers()}) {
      EXPECT_TRUE(registers % 8 == 0 && registers >= 24 && registers <= 256) << index << ": " << registers;
    }
    EXPECT_LT(tile.sums(), tile.registers() - 40) << index << ": the sums alone fill the registers";
    // wgmma takes up to 256 tokens; results are stored, and sums shared out, 16 at a time.
    EXPECT_TRUE(tile.tokens >= 16 && tile.tokens <= 256 && tile.tokens % 8 == 0) << index;
    EXPECT_LE(4 * 4 * tile.warpgroups(), kBarrierGap) << index << ": results reach the barriers";
    EXPECT_EQ(tile.row_groups() % (4 * tile.row_warpgroups), 0) << index << ": wgmma has 64 rows";
    EXPECT_GT(tile.nanoseconds, 0) << index;
  }
}

// The laboratory overrules plans: it must measure what it asked for, or be told that there is no such plan.
TEST(PrefillPlan, WishesAreFulfilledOrRefused) {
  for_random_shapes(60, kMostPlanTokens, [](PlanCase one) {
    one.card = kCards[0];
    for (PlanWish wish : tile_wishes()) {
      for (wish.split = 0; wish.split <= kMostSplit; ++wish.split) {
        for (const int blocks : {0, 1, 2, 7, 66}) {
          wish.blocks = blocks, one.wish = wish;
          if (!right(one)) return false;
        }
      }
    }
    one.wish = {.tile = kPrefillTileCount + 1};
    return right(one);
  });
}

// Other Hopper cards have fewer multiprocessors, a slice of one (MIG) only a few: clusters of some sizes may not run
// there at all.
TEST(PrefillPlan, CardsOfAnyNumberOfMultiprocessors) {
  auto random = fresh_random();
  for_random_shapes(10000, kMostPlanTokens, [&](PlanCase one) {
    one.card = {"another card", {.sm_count = static_cast<int>(random_between(random, 1, 160))}};
    DeviceLimits& limits = one.card.limits;
    for (int split = 2; split <= kMostSplit; ++split) {
      const int most = std::min(limits.resident_clusters(split - 1), limits.sm_count / split);
      limits.clusters[static_cast<size_t>(split - 2)] = static_cast<int>(random_between(random, 0, most));
    }
    return right(one);
  });
}

// K ends within a unit, has a single one, or fewer than the blocks of a cluster.
TEST(PrefillPlan, AnyMultipleOf32IsAK) {
  for (int k = 32; k <= 64 * (kMostSplit + 2); k += 32) {
    for (const int m : {40, 64, 300}) {
      for (const PlanWish& wish : tile_wishes()) {
        for (const int n : {1, 100, 4096}) {
          if (!right({{.m = m, .n = n, .k = k}, {4, 64, false}, kCards[0], wish})) return;
        }
      }
    }
  }
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
  const std::vector<PlanWish> wishes = tile_wishes();
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
            if (!plan.valid) continue;
            const std::string wrong = wrong_in_limits(plan, one) + wrong_in_memory(plan, one);
            ASSERT_EQ(wrong, "") << kilobytes << " KB, " << one.text(plan);
          }
          // The first is the plan's own choice: there is one where any tile has one.
          const bool any = std::find(before.begin() + 1, before.end(), true) != before.end();
          ASSERT_EQ(before[0], any) << kilobytes << " KB, " << bits << " bits, group " << group;
        }
        EXPECT_EQ(std::count(before.begin(), before.end(), true), wishes.size()) << bits << " bits, group " << group;
      }
    }
  }
}

}  // namespace
}  // namespace flute::cuda
