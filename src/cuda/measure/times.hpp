#pragma once

namespace flute::cuda {

/// Seconds of one launch: over the repetitions the median, the least and the most.
struct Times {
  double median = 0, low = 0, high = 0;
};

}  // namespace flute::cuda
