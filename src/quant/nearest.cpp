#include "quant/nearest.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace flute {

NearestTable::NearestTable(std::span<const float> values) : bits(std::countr_zero(values.size())), ascending(true) {
  std::array<int, 256> order{};
  const auto end = order.begin() + static_cast<std::ptrdiff_t>(values.size());
  for (size_t code = 0; code < values.size(); ++code) order[code] = static_cast<int>(code);
  std::stable_sort(order.begin(), end, [&](int a, int b) { return values[a] < values[b]; });
  const auto last = std::unique(order.begin(), end, [&](int a, int b) { return values[a] == values[b]; });

  const auto intervals = static_cast<size_t>(last - order.begin());
  thresholds.fill(std::numeric_limits<float>::quiet_NaN());
  codes.fill(0);
  for (size_t i = 0; i < intervals; ++i) {
    codes[i] = static_cast<uint8_t>(order[i]);
    ascending = ascending && order[i] == static_cast<int>(i);
    if (i == 0) continue;
    const double boundary = 0.5 * (double{values[order[i - 1]]} + double{values[order[i]]});
    auto threshold = static_cast<float>(boundary);
    const bool belongs_below = double{threshold} == boundary && order[i - 1] < order[i];
    if (double{threshold} < boundary || belongs_below) {
      threshold = std::nextafter(threshold, std::numeric_limits<float>::infinity());
    }
    thresholds[i - 1] = threshold;
  }
}

}  // namespace flute
