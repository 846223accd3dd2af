#pragma once
#include <cstdint>
#include <vector>

#include "io/model_config.hpp"

namespace flute::model {

/// Angle a position of each pair of a head's components, [head_dim / 2]: theta^(-2i / head_dim), slowed down as
/// config.json asks ("linear": all by a factor; "llama3": low frequencies by it, high ones not, in between a blend, as
/// in Llama 3.1's code).
std::vector<float> rope_frequencies(const io::RopeConfig& config, int64_t head_dim);

/// Cosines and sines for some positions in a row.
struct RopeTable {
  int64_t pairs = 0;
  std::vector<float> cosines, sines;  ///< [positions, pairs]

  RopeTable(const std::vector<float>& frequencies, int64_t first_position, int64_t positions);
  const float* cosine(int64_t row) const { return cosines.data() + row * pairs; }
  const float* sine(int64_t row) const { return sines.data() + row * pairs; }
};

}  // namespace flute::model
