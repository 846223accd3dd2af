#pragma once
#include <cstdint>
#include <vector>

#include "io/checkpoint.hpp"

namespace flute::cli {

/// The original's weights as quantization sees them, each divided by the largest magnitude of its group, and where a
/// quantized model's tables lie among them.
struct WeightHistogram {
  static constexpr double kLow = -1.2, kHigh = 1.2;  ///< integer tables reach beyond -1
  std::vector<double> density;                       ///< shares of equal bins over [kLow, kHigh]; they sum to 1
  std::vector<std::vector<double>> tables;           ///< each distinct table among the sampled layers, on the same axis
  int64_t layers = 0;                                ///< sampled
};

/// Samples some rows of some layers of `quantized` that `original` holds with the same shape.
WeightHistogram weight_histogram(const io::Checkpoint& quantized, const io::Checkpoint& original);

}  // namespace flute::cli
