// Which kernels are built: needs CUDA's compiler, but no device.
#include <gtest/gtest.h>

#include <set>

#include "cuda/decode/decode.hpp"
#include "cuda/multiply_plan.hpp"
#include "cuda/plan_cases.hpp"
#include "cuda/prefill/prefill.hpp"

namespace flute::cuda {
namespace {

// A plan without a kernel is a matrix that cannot be made, or a call that fails.
bool has_kernel(const PlanCase& one) {
  const MultiplyPlan plan = make_multiply_plan(one.shape, one.format, one.card.limits);
  const auto has = [&](const DecodePlan& part) { return find_decode_kernel(part, one.format) != nullptr; };
  const PrefillPlan& many = plan.prefill;
  const bool found = plan.family == Family::kPrefill
                         ? find_prefill_kernel(many.quads, many.tokens, one.format) != nullptr
                         : has(plan.decode) && (!plan.rest.valid || has(plan.rest));
  EXPECT_TRUE(found) << one.text(plan);
  return found;
}

TEST(Kernels, EveryPlanOfAModelShapeHasOne) { for_model_shapes(kMostPlanTokens, has_kernel); }

TEST(Kernels, EveryPlanOfARandomShapeHasOne) { for_random_shapes(10000, kMostPlanTokens, has_kernel); }

// Whatever tile a plan may choose, or an experiment ask for; two tiles that share a kernel would give wrong sums.
TEST(Kernels, EveryPrefillTileHasOneOfItsOwn) {
  std::set<PrefillKernel> kernels;
  size_t tiles = 0;
  for (const int bits : {2, 3, 4}) {
    for (const bool bf16 : {false, true}) {
      for (const int group : {32, 64}) {
        for (int quads = 0; quads <= 8; ++quads) {
          for (int tokens = 0; tokens <= 512; tokens += 32) {
            const PrefillKernel kernel = find_prefill_kernel(quads, tokens, {bits, group, bf16});
            EXPECT_EQ(kernel != nullptr, is_prefill_tile(quads, tokens)) << quads << " quads, " << tokens << " tokens";
            if (kernel == nullptr) continue;
            kernels.insert(kernel);
            ++tiles;
          }
        }
      }
    }
  }
  EXPECT_EQ(kernels.size(), tiles);
}

}  // namespace
}  // namespace flute::cuda
