// What calls remember of earlier ones.
#include "cuda/recent.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

namespace flute::cuda {
namespace {

/// A key that differs from the others in each of what a plan follows from.
std::vector<PlanKey> different_keys() {
  const PlanKey plain = {{17, 4096, 4096}, {}, 0};
  std::vector<PlanKey> keys(9, plain);
  keys[1].shape.m = 18;
  keys[2].shape.n = 4064;
  keys[3].shape.k = 4064;
  keys[4].shape.segments = 2, keys[4].shape.segment_row[1] = 1024, keys[4].shape.segment_row[2] = 4096;
  keys[5].shape.segments = 2, keys[5].shape.segment_row[1] = 2048, keys[5].shape.segment_row[2] = 4096;
  keys[6].format.bits = 3;
  keys[7].format.bf16 = true;
  keys[8].device = 1;
  return keys;
}

TEST(Recent, MakesAValueOnceForEachKey) {
  Recent<int> recent;
  const std::vector<PlanKey> keys = different_keys();
  int made = 0;
  for (int round = 0; round < 3; ++round) {
    for (size_t i = 0; i < keys.size(); ++i) {
      EXPECT_EQ(recent.get(keys[i], [&] { return made++; }), static_cast<int>(i)) << round;
    }
  }
  EXPECT_EQ(made, static_cast<int>(keys.size()));
}

TEST(Recent, HoldsNoMoreThanItMay) {
  Recent<int> recent;
  const auto get = [&](int m) { return recent.get({{m, 64, 64}, {}, 0}, [m] { return m; }); };
  const int most = static_cast<int>(Recent<int>::kMost);
  for (int m = 1; m <= 3 * most; ++m) EXPECT_EQ(get(m), m);
  int made = 0;
  for (int m = 2 * most + 1; m <= 3 * most; ++m) {
    EXPECT_EQ(recent.get({{m, 64, 64}, {}, 0}, [&, m] { return ++made, m; }), m);
  }
  EXPECT_EQ(made, 0) << "the last kMost are known";
  recent.get({{1, 64, 64}, {}, 0}, [&] { return ++made; });
  EXPECT_EQ(made, 1) << "the first are not";
}

TEST(Recent, RemembersNothingThatFailed) {
  Recent<int> recent;
  const PlanKey key = {{65, 64, 64}, {}, 0};
  EXPECT_THROW(recent.get(key, []() -> int { throw std::runtime_error("no kernel"); }), std::runtime_error);
  EXPECT_EQ(recent.get(key, [] { return 7; }), 7);
}

}  // namespace
}  // namespace flute::cuda
