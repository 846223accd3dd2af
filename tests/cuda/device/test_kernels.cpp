// Which kernels are built: needs CUDA's compiler, but no device.
#include <gtest/gtest.h>

#include <optional>
#include <set>

#include "cuda/multiply.hpp"
#include "cuda/plan_cases.hpp"
#include "flute/error.hpp"

namespace flute::cuda {
namespace {

/// The kernels of a plan, or nothing where one is not built.
std::optional<Multiply> built(const MultiplyPlan& plan, const Format& format) {
  try {
    return Multiply(plan, format);
  } catch (const Error&) {
    return std::nullopt;
  }
}

// A plan without a kernel is a matrix that cannot be made, or a call that fails.
bool has_kernel(const PlanCase& one) {
  const MultiplyPlan plan = make_multiply_plan(one.shape, one.format, one.card.limits);
  const bool found = built(plan, one.format).has_value();
  EXPECT_TRUE(found) << one.text(plan);
  return found;
}

TEST(Kernels, EveryPlanOfAModelShapeHasOne) { for_model_shapes(kMostPlanTokens, has_kernel); }

TEST(Kernels, EveryPlanOfARandomShapeHasOne) { for_random_shapes(10000, kMostPlanTokens, has_kernel); }

// Whatever tile a plan may choose, or an experiment ask for; two that share a kernel would give wrong sums.
TEST(Kernels, EveryPrefillTileHasOneOfItsOwn) {
  std::set<const void*> kernels;
  size_t tiles = 0;
  for (const int bits : {2, 3, 4}) {
    for (const bool bf16 : {false, true}) {
      for (const int group : {32, 64}) {
        for (int tile = 1; tile <= kPrefillTileCount; ++tile) {
          const PlanWish wish = {.tile = tile};
          const PlanCase one{{.m = 512, .n = 4096, .k = 4096}, {bits, group, bf16}, kCards[0], wish};
          const MultiplyPlan plan = make_multiply_plan(Family::kPrefill, one.shape, one.format, one.card.limits, wish);
          const std::optional<Multiply> multiply = built(plan, one.format);
          ASSERT_TRUE(multiply.has_value()) << one.text(plan);
          kernels.insert(multiply->kernel);
          ++tiles;
        }
      }
    }
  }
  EXPECT_EQ(kernels.size(), tiles);
}

// As above, of prefill on mma.sync: a kernel serves all tiles whose warps have the same rows.
TEST(Kernels, EveryTileOfPrefillOnMmaHasOne) {
  std::set<const void*> kernels;
  for (const int bits : {2, 3, 4}) {
    for (const bool bf16 : {false, true}) {
      for (const int group : {32, 64}) {
        for (int tile = 1; tile <= kPrefillMmaTileCount; ++tile) {
          const PlanWish wish = {.tile = tile};
          const PlanCase one{{.m = 512, .n = 4096, .k = 4096}, {bits, group, bf16}, kCards[1], wish};
          const MultiplyPlan plan =
              make_multiply_plan(Family::kPrefillMma, one.shape, one.format, one.card.limits, wish);
          const std::optional<Multiply> multiply = built(plan, one.format);
          ASSERT_TRUE(multiply.has_value()) << one.text(plan);
          kernels.insert(multiply->kernel);
        }
      }
    }
  }
  EXPECT_EQ(kernels.size(), 3 * 2 * 2 * 3);  // bits, dtypes, scale groups, places of warps
}

}  // namespace
}  // namespace flute::cuda
