// Which kernels are built: needs CUDA's compiler, but no device.
#include <gtest/gtest.h>

#include "cuda/decode/decode.hpp"
#include "cuda/plan_cases.hpp"

namespace flute::cuda {
namespace {

// A plan without a kernel is a matrix that cannot be made.
bool has_kernel(const PlanCase& one) {
  const bool found = find_decode_kernel(one.plan(), one.format) != nullptr;
  EXPECT_TRUE(found) << one.text();
  return found;
}

TEST(Kernels, EveryPlanOfAModelShapeHasOne) { for_model_shapes(has_kernel); }

TEST(Kernels, EveryPlanOfARandomShapeHasOne) { for_random_shapes(10000, has_kernel); }

}  // namespace
}  // namespace flute::cuda
