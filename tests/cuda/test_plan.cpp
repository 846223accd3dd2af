// A kernel believes its plan without looking: a wrong one computes an output twice or never, or writes where it must
// not.
#include "cuda/plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "cuda/plan_cases.hpp"

namespace flute::cuda {
namespace {

struct Range {
  int64_t begin, end;
};

/// Do the ranges, in any order, cover [begin, end) once?
bool cover_once(std::vector<Range> ranges, int64_t begin, int64_t end) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (const Range& range : ranges) {
    if (range.begin != begin || range.end <= range.begin) return false;
    begin = range.end;
  }
  return begin == end;
}

/// Parts of a block's shared memory that are in use at the same time, in the 16-byte pieces that kernels copy.
class SharedMemory {
 public:
  explicit SharedMemory(int bytes) : used_(static_cast<size_t>(std::max(bytes, 0)) / kPiece) {}
  void take(int begin, int bytes) {
    const auto end = static_cast<size_t>(begin + bytes) / kPiece;
    fits_ = fits_ && begin >= 0 && begin % kPiece == 0 && bytes % kPiece == 0 && end <= used_.size();
    for (size_t i = static_cast<size_t>(begin) / kPiece; fits_ && i < end; ++i) fits_ = used_[i]++ == 0;
  }
  bool fits() const { return fits_; }  ///< nothing lies outside or on something else

 private:
  static constexpr int kPiece = 16;
  std::vector<uint8_t> used_;
  bool fits_ = true;
};

// The checks below return what is wrong, or nothing.

/// Who computes what, as decode.cuh reads a plan: a block has a range of row groups and goes through them in passes; in
/// each its warps deal out the steps of K in turn.
std::string wrong_in_work(const DecodePlan& plan) {
  std::vector<Range> blocks;
  for (int block = 0; block < plan.blocks; ++block) {
    blocks.push_back({share_begin(plan.rows_each, plan.rows_longer, block),
                      share_begin(plan.rows_each, plan.rows_longer, block + 1)});
    // Passes of `rows` row groups, the last one of what is left, can miss nothing if there are any.
  }
  if (plan.rows < 1 || !cover_once(blocks, 0, plan.row_groups)) return "row groups of the blocks";
  std::vector<Range> steps;
  for (int warp = 0; warp < plan.warps; ++warp) {
    for (int unit = warp * plan.depth; unit < plan.units; unit += plan.warps * plan.depth) {
      steps.push_back({unit, unit + plan.depth});  // a step takes all its units to be there
    }
  }
  return cover_once(steps, 0, plan.units) ? "" : "units of the warps";
}

/// Table, sums and every warp's two stages of codes, scales and activations, as decode.cuh places them. All are live at
/// once: while the sums of a pass meet, the next one is being fetched, and the table serves it.
std::string wrong_in_memory(const DecodePlan& plan, const PlanCase& one) {
  constexpr int kLine = 128;  // a bank each; the kernel's swizzles flip bits of addresses below it
  const int entries = table_bytes(one.format.bits) / kTableStride;
  SharedMemory memory(plan.shared_bytes);
  for (int entry = 0; entry < entries; ++entry) memory.take(entry * kTableStride, kLine);
  const int lines = plan.warps * std::min(kSumTiles, plan.rows * plan.tiles_m) * 4;
  for (int line = 0; line < lines; ++line) memory.take(plan.sums_at + line * plan.sum_pitch, kLine);
  if (!memory.fits()) return "sums";
  const int codes = plan.rows * plan.depth * unit_bytes(one.format.bits);
  const int scales = plan.rows * plan.depth * groups_of_unit(one.format.group_size) * kScaleBytes;
  for (int stage = 0; stage < 2 * plan.warps; ++stage) {
    const int begin = plan.ring_at + stage * plan.stage_bytes, x = begin + plan.x_in_stage;
    memory.take(begin, codes);
    memory.take(begin + codes, scales);
    memory.take(x, plan.depth * one.shape.m * kUnitK * 2);
    if (x % kLine != 0) return "alignment of activations";
  }
  if (!memory.fits()) return "stages";
  return 4 * plan.warps * plan.table_rounds >= entries ? "" : "entries of the table";
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
  if (plan.warps < 1 || plan.warps > max_warps(plan.tiles_m)) return "more warps than the kernel is compiled for";
  if (plan.blocks < 1 || plan.blocks > one.card.limits.sm_count) return "blocks beyond one a multiprocessor";
  if (8 * plan.tiles_m < one.shape.m) return "too few tokens";
  return "";
}

/// Returns whether the case's plan is right, and prints what is not.
bool right(const PlanCase& one) {
  const DecodePlan plan = one.plan();
  std::string wrong = wrong_in_limits(plan, one);
  if (wrong.empty()) wrong = wrong_in_groups(plan, one);
  if (wrong.empty()) wrong = wrong_in_memory(plan, one);
  if (wrong.empty()) wrong = wrong_in_work(plan);
  EXPECT_EQ(wrong, "") << one.text();
  return wrong.empty();
}

TEST(Plan, ModelShapesHaveARightPlanOnEveryCard) { for_model_shapes(right); }

TEST(Plan, RandomShapesHaveARightPlanOnEveryCard) { for_random_shapes(10000, right); }

// A plan is a function of its arguments alone, so a call may be planned ahead; more tokens than a launch takes are the
// caller's to split.
TEST(Plan, NothingIsPlannedForNoTokensOrTooMany) {
  for (const int m : {-1, 0, kMaxDecodeTokens + 1}) {
    EXPECT_FALSE(make_decode_plan({m, 4096, 4096}, {}, kCards[0].limits).valid) << m;
  }
}

}  // namespace
}  // namespace flute::cuda
