#pragma once
#include <algorithm>
#include <cmath>
#include <span>
#include <utility>
#include <vector>

#include "quant/nearest.hpp"

namespace flute {

/// A table as the quantizers that learn one use it.
struct LookupTable {
  explicit LookupTable(std::vector<float> table) : values(std::move(table)), nearest(values) {}
  std::vector<float> values;
  NearestTable nearest;

  float max_magnitude() const {
    float largest = 0;
    for (const float value : values) largest = std::max(largest, std::abs(value));
    return largest;
  }

  /// Lloyd's step: for each code the mean of what is nearest to it, given the sums of its weights and of weighted
  /// values; where there is none, the value stays.
  std::vector<float> means(std::span<const double> weights, std::span<const double> weighted) const {
    std::vector<float> result = values;
    for (size_t i = 0; i < result.size(); ++i) {
      const double value = weighted[i] / weights[i];
      if (weights[i] > 0 && std::isfinite(value)) result[i] = static_cast<float>(value);
    }
    return result;
  }
};

}  // namespace flute
