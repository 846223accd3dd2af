#include "model/rope.hpp"

#include <cmath>
#include <numbers>

namespace flute::model {

std::vector<float> rope_frequencies(const io::RopeConfig& config, int64_t head_dim) {
  std::vector<float> frequencies(static_cast<size_t>(head_dim / 2));
  const double context = static_cast<double>(config.original_max_position_embeddings);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double frequency = std::pow(config.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    if (config.type == "linear") {
      frequency /= config.factor;
    } else if (config.type == "llama3") {
      const double turns = context * frequency / (2 * std::numbers::pi);  // within the original context
      double blend = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor);
      blend = std::min(std::max(blend, 0.0), 1.0);
      frequency *= (1 - blend) / config.factor + blend;
    }
    frequencies[i] = static_cast<float>(frequency);
  }
  return frequencies;
}

RopeTable::RopeTable(const std::vector<float>& frequencies, int64_t first_position, int64_t positions)
    : pairs(static_cast<int64_t>(frequencies.size())) {
  cosines.reserve(static_cast<size_t>(positions) * frequencies.size());
  sines.reserve(cosines.capacity());
  for (int64_t position = first_position; position < first_position + positions; ++position) {
    for (const float frequency : frequencies) {
      // The product is rounded to fp32, as in the models' training.
      const double angle = static_cast<double>(static_cast<float>(position) * frequency);
      cosines.push_back(static_cast<float>(std::cos(angle)));
      sines.push_back(static_cast<float>(std::sin(angle)));
    }
  }
}

}  // namespace flute::model
