#include <gtest/gtest.h>

#include <vector>

#include "base/seed.hpp"
#include "cuda/layout.hpp"

namespace flute::cuda {
namespace {

// A code that the layout puts nowhere, twice, or elsewhere than its inverse looks would be a wrong weight.
TEST(Layout, EveryCodeOfAUnitComesBack) {
  auto random = fresh_random();
  for (const int bits : {2, 3, 4}) {
    std::vector<uint32_t> codes(static_cast<size_t>(kGroupRows * kUnitK));
    for (uint32_t& code : codes) code = static_cast<uint32_t>(random_between(random, 0, (1 << bits) - 1));
    std::vector<uint32_t> unit(static_cast<size_t>(unit_bytes(bits) / 4), 0xdeadbeef);
    std::vector<int> written(unit.size()), read(codes.size());
    for (int lane = 0; lane < 32; ++lane) {
      for (int word = 0; word < bits; ++word) {
        const auto at = static_cast<size_t>(word_position(bits, lane, word));
        ++written.at(at);
        unit.at(at) = tiled_word(bits, lane, word, [&](int row, int k) {
          const auto index = static_cast<size_t>(row * kUnitK + k);
          ++read.at(index);
          return codes.at(index);
        });
      }
    }
    EXPECT_EQ(written, std::vector<int>(unit.size(), 1)) << bits << " bits";
    for (const int count : read) ASSERT_GE(count, 1) << bits << " bits";
    for (int row = 0; row < kGroupRows; ++row) {
      for (int k = 0; k < kUnitK; ++k) {
        const auto word_of = [&](int lane, int word) {
          return unit[static_cast<size_t>(word_position(bits, lane, word))];
        };
        ASSERT_EQ(tiled_code(bits, row, k, word_of), codes[static_cast<size_t>(row * kUnitK + k)])
            << bits << " bits, row " << row << ", k " << k;
      }
    }
  }
}

TEST(Layout, ScalesOfARowGroupHaveAPlaceEach) {
  std::vector<int> used(kGroupRows);
  for (int row = 0; row < kGroupRows; ++row) ++used.at(static_cast<size_t>(scale_position(row)));
  EXPECT_EQ(used, std::vector<int>(kGroupRows, 1));
}

// Kernels read whole units: a K that ends inside one needs padding, and scale groups for it.
TEST(Layout, PaddingCoversKAndItsGroups) {
  for (int k = 32; k <= 1024; k += 32) {
    const int padded = units_along_k(k) * kUnitK;
    EXPECT_GE(padded, k);
    EXPECT_LT(padded - k, kUnitK);
    EXPECT_EQ(tiled_groups(-1, k), 1);
    for (const int group : {32, 64, 128, 256}) {
      EXPECT_GE(tiled_groups(group, k) * group, padded);
      EXPECT_LT((tiled_groups(group, k) - 1) * group, padded);
    }
  }
}

}  // namespace
}  // namespace flute::cuda
