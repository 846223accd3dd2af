#include "model/allocation.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/fail.hpp"

namespace flute::model {

std::vector<size_t> allocate_bytes(std::span<const std::vector<Alternative>> items, int64_t budget) {
  constexpr int64_t kSteps = int64_t{1} << 16;
  constexpr double kNever = std::numeric_limits<double>::infinity();
  std::vector<int64_t> least;
  int64_t spare = budget;
  for (const std::vector<Alternative>& item : items) {
    const auto smallest = std::min_element(
        item.begin(), item.end(), [](const Alternative& a, const Alternative& b) { return a.bytes < b.bytes; });
    least.push_back(smallest->bytes);
    spare -= smallest->bytes;
  }
  if (spare < 0) {
    fail(ErrorCode::kInvalidArgument, "budget: expected at least {} bytes, found {}", budget - spare, budget);
  }
  const int64_t unit = std::max<int64_t>(1, (spare + kSteps - 1) / kSteps);
  const int64_t units = spare / unit;

  // losses[u]: the least of the items so far that take at most u units.
  std::vector<double> losses(static_cast<size_t>(units + 1), 0.0);
  std::vector<std::vector<uint8_t>> chosen;
  for (size_t i = 0; i < items.size(); ++i) {
    std::vector<double> next(losses.size(), kNever);
    std::vector<uint8_t>& of_item = chosen.emplace_back(losses.size());
    for (size_t a = 0; a < items[i].size(); ++a) {
      const int64_t takes = (items[i][a].bytes - least[i] + unit - 1) / unit;
      for (int64_t u = takes; u <= units; ++u) {
        const double loss = losses[static_cast<size_t>(u - takes)] + items[i][a].loss;
        if (!(loss < next[static_cast<size_t>(u)])) continue;
        next[static_cast<size_t>(u)] = loss;
        of_item[static_cast<size_t>(u)] = static_cast<uint8_t>(a);
      }
    }
    losses = std::move(next);
  }

  std::vector<size_t> result(items.size());
  int64_t left = units;
  for (size_t i = items.size(); i-- > 0;) {
    result[i] = chosen[i][static_cast<size_t>(left)];
    left -= (items[i][result[i]].bytes - least[i] + unit - 1) / unit;
  }
  return result;
}

}  // namespace flute::model
