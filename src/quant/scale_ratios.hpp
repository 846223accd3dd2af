#pragma once

namespace flute {

/// Candidates of a scale search, times absmax / m: 0.4 to 1.1 in steps of 0.025 (docs/quantizers.md).
constexpr int kScaleRatios = 29;
constexpr float scale_ratio(int candidate) {
  return 0.4F + (1.1F - 0.4F) * static_cast<float>(candidate) / (kScaleRatios - 1);
}

}  // namespace flute
