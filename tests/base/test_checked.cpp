#include <gtest/gtest.h>

#include <array>
#include <limits>

#include "base/checked.hpp"

namespace flute {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

TEST(Checked, RefusesOverflowAndNegativeSizes) {
  EXPECT_EQ(checked_mul(3037000499, 3037000499), 3037000499 * 3037000499);
  EXPECT_FALSE(checked_mul(int64_t{1} << 32, int64_t{1} << 31));
  EXPECT_FALSE(checked_mul(-1, 2));
  EXPECT_FALSE(checked_mul(2, -1));
  EXPECT_EQ(checked_add(kMax, 0), kMax);
  EXPECT_FALSE(checked_add(kMax, 1));
  EXPECT_FALSE(checked_add(-1, 1));
}

TEST(Checked, ProductOfAShape) {
  EXPECT_EQ(checked_product({}), 1);
  EXPECT_EQ(checked_product(std::array<int64_t, 3>{2, 3, 4}), 24);
  EXPECT_FALSE(checked_product(std::array<int64_t, 3>{kMax, 2, 2}));
  EXPECT_FALSE(checked_product(std::array<int64_t, 2>{-1, -1}));
  // An empty tensor is empty whatever its other dimensions say, but a negative one is never a size.
  EXPECT_EQ(checked_product(std::array<int64_t, 3>{kMax, kMax, 0}), 0);
  EXPECT_FALSE(checked_product(std::array<int64_t, 2>{0, -1}));
}

}  // namespace
}  // namespace flute
