#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "base/seed.hpp"
#include "error_of.hpp"
#include "flute/error.hpp"
#include "model/allocation.hpp"

namespace flute::model {
namespace {

using Items = std::vector<std::vector<Alternative>>;

double loss_of(const Items& items, const std::vector<size_t>& chosen, int64_t budget) {
  double loss = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    budget -= items[i][chosen[i]].bytes;
    loss += items[i][chosen[i]].loss;
  }
  return budget < 0 ? std::numeric_limits<double>::infinity() : loss;
}

/// Of all choices there are.
double least_loss(const Items& items, int64_t budget) {
  std::vector<size_t> chosen(items.size());
  double least = std::numeric_limits<double>::infinity();
  const std::function<void(size_t)> choose = [&](size_t item) {
    if (item == items.size()) {
      least = std::min(least, loss_of(items, chosen, budget));
      return;
    }
    for (chosen[item] = 0; chosen[item] < items[item].size(); ++chosen[item]) choose(item + 1);
  };
  choose(0);
  return least;
}

// Losses that do not fall with the bytes, too: what was measured need not.
TEST(AllocateBytes, FindsTheBestChoiceThatFits) {
  auto random = fresh_random();
  std::uniform_int_distribution<int> bytes(1, 40), alternatives(1, 4);
  std::uniform_real_distribution<double> loss(0.0, 1.0);
  for (int trial = 0; trial < 200; ++trial) {
    Items items(5);
    int64_t least = 0, most = 0;
    for (auto& item : items) {
      int64_t smallest = 1000, largest = 0;
      for (int count = alternatives(random); count > 0; --count) {
        item.push_back({bytes(random), loss(random)});
        smallest = std::min(smallest, item.back().bytes);
        largest = std::max(largest, item.back().bytes);
      }
      least += smallest;
      most += largest;
    }
    for (const int64_t budget : {least, (least + most) / 2, most, most + 1000}) {
      EXPECT_NEAR(loss_of(items, allocate_bytes(items, budget), budget), least_loss(items, budget), 1e-12);
    }
    error_of(ErrorCode::kInvalidArgument, [&] { allocate_bytes(items, least - 1); });
  }
}

// A model's sizes, whose steps are larger than a byte: the budget holds all the same.
TEST(AllocateBytes, KeepsToALargeBudget) {
  auto random = fresh_random();
  std::uniform_int_distribution<int64_t> size(1'000'000, 90'000'000);
  Items items(320);
  int64_t least = 0;
  for (auto& item : items) {
    const int64_t weights = size(random);
    for (const int bits : {2, 3, 4}) item.push_back({weights * bits / 8 + bits, 1.0 / (1 << (2 * bits))});
    least += item.front().bytes;
  }
  for (const int64_t budget : {least, least * 5 / 4, least * 3 / 2}) {
    const double loss = loss_of(items, allocate_bytes(items, budget), budget);
    // A quarter more is half of what takes all from 2 to 3 bits, each of which then loses a quarter.
    EXPECT_LE(loss, 320.0 / 16 * (budget == least ? 1.0 : budget == least * 5 / 4 ? 0.63 : 0.26));
  }
}

}  // namespace
}  // namespace flute::model
