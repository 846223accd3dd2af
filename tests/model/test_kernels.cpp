#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "base/seed.hpp"
#include "model/kernels.hpp"
#include "model/rope.hpp"

namespace flute::model {
namespace {

std::vector<float> normal(std::mt19937_64& random, int64_t count, float deviation = 1) {
  std::normal_distribution<float> draw(0, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = draw(random);
  return values;
}

/// Attention by its formula, in double.
std::vector<double> attend_plainly(const AttentionTile& tile, int row) {
  std::vector<double> weights;
  for (int64_t p = tile.begin[row]; p < tile.end[row]; ++p) {
    double score = 0;
    for (int64_t d = 0; d < tile.head_dim; ++d) {
      const float key = tile.keys[(p / kKeyBlock * tile.head_dim + d) * kKeyBlock + p % kKeyBlock];
      score += static_cast<double>(tile.query[row][d]) * key;
    }
    score *= tile.scale;
    if (tile.soft_cap > 0) score = tile.soft_cap * std::tanh(score / tile.soft_cap);
    weights.push_back(score);
  }
  const double largest = *std::max_element(weights.begin(), weights.end());
  double total = 0;
  for (double& weight : weights) total += weight = std::exp(weight - largest);
  std::vector<double> out(static_cast<size_t>(tile.head_dim));
  for (int64_t p = tile.begin[row]; p < tile.end[row]; ++p) {
    for (int64_t d = 0; d < tile.head_dim; ++d) {
      out[static_cast<size_t>(d)] +=
          weights[static_cast<size_t>(p - tile.begin[row])] / total * tile.values[p * tile.value_stride + d];
    }
  }
  return out;
}

TEST(Attend, AnyNumberOfRowsPositionsAndComponents) {
  std::mt19937_64 random = fresh_random();
  for (int draw = 0; draw < 300; ++draw) {
    AttentionTile tile;
    tile.rows = static_cast<int>(random_between(random, 1, kTileRows));
    tile.head_dim = 2 * random_between(random, 1, 70);
    tile.value_stride = (tile.head_dim + 15) / 16 * 16;
    const int64_t positions = random_between(random, 1, 200);
    const int64_t padded = (positions + 15) / 16 * 16;
    const std::vector<float> keys = normal(random, padded * tile.head_dim);
    const std::vector<float> values = normal(random, padded * tile.value_stride);
    const std::vector<float> queries = normal(random, tile.rows * tile.head_dim);
    std::vector<float> out(static_cast<size_t>(tile.rows * tile.head_dim));
    std::vector<float> scratch(static_cast<size_t>(attention_scratch(positions, tile.value_stride)));
    for (int r = 0; r < tile.rows; ++r) {
      tile.query[r] = queries.data() + r * tile.head_dim;
      tile.out[r] = out.data() + r * tile.head_dim;
      tile.end[r] = random_between(random, 1, positions);
      tile.begin[r] = random_between(random, 0, tile.end[r] - 1);
    }
    tile.keys = keys.data();
    tile.values = values.data();
    tile.scale = 0.3F;
    tile.soft_cap = draw % 2 == 0 ? 0.0F : 5.0F;
    tile.scratch = scratch.data();
    attend(tile);
    for (int r = 0; r < tile.rows; ++r) {
      const std::vector<double> expected = attend_plainly(tile, r);
      for (int64_t d = 0; d < tile.head_dim; ++d) {
        // Scores reach some tens, where fp32 has an error of 1e-6 a sum of 140 products; weights sum to 1.
        ASSERT_NEAR(tile.out[r][d], expected[static_cast<size_t>(d)], 1e-4)
            << "rows " << tile.rows << ", head_dim " << tile.head_dim << ", positions " << positions;
      }
    }
  }
}

TEST(Kernels, FunctionsAreTheirFormulas) {
  std::mt19937_64 random = fresh_random();
  for (const int64_t n : {1, 3, 16, 33, 1000}) {
    std::vector<float> x = normal(random, n, 5);
    x[0] = -200;  // exp of it and of its negative overflow or vanish
    const std::vector<float> up = normal(random, n);
    std::vector<float> silu(x.size()), gelu(x.size()), capped = x;
    silu_multiply(x.data(), up.data(), n, silu.data());
    gelu_multiply(x.data(), up.data(), n, gelu.data());
    soft_cap(capped.data(), n, 30);
    double total = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double v = static_cast<double>(x[i]), u = static_cast<double>(up[i]);
      const double tolerance = 1e-6 * (1 + std::abs(v * u));
      EXPECT_NEAR(silu[i], v / (1 + std::exp(-v)) * u, tolerance) << v;
      EXPECT_NEAR(gelu[i], 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v))) * u, tolerance)
          << v;
      EXPECT_NEAR(capped[i], 30 * std::tanh(v / 30), 1e-5) << v;
      total += std::exp(v);
    }
    EXPECT_NEAR(log_sum_exp(x.data(), n), n == 1 ? -200.0 : std::log(total), 1e-5);
  }
}

TEST(Kernels, RmsNormKeepsItsEpsilonAndWeight) {
  const std::vector<float> x = {3, -4, 0, 0, 0};
  const std::vector<float> weight = {1, 2, 3, 4, 5};
  std::vector<float> y(5);
  rms_norm(x.data(), weight.data(), 4.0F, 5, y.data());  // mean square 5, plus 4: divided by 3
  EXPECT_FLOAT_EQ(y[0], 1.0F);
  EXPECT_FLOAT_EQ(y[1], -8.0F / 3);
  EXPECT_FLOAT_EQ(y[2], 0.0F);
}

TEST(Rope, FrequenciesOfLlama31) {
  io::RopeConfig config;
  config.theta = 500000;
  config.type = "llama3";
  config.factor = 8;
  config.low_freq_factor = 1;
  config.high_freq_factor = 4;
  config.original_max_position_embeddings = 8192;
  const std::vector<float> found = rope_frequencies(config, 128);
  // Of transformers 5.23, _compute_llama3_parameters.
  const std::pair<size_t, double> expected[] = {{0, 1},
                                                {1, 0.814617217},
                                                {16, 0.0376060307},
                                                {28, 0.00321144611},
                                                {29, 0.00216657063},
                                                {31, 0.00085675146},
                                                {33, 0.00031269365},
                                                {35, 9.55621217e-05},
                                                {36, 7.78465546e-05},
                                                {48, 6.64786967e-06},
                                                {63, 3.06892588e-07}};
  for (const auto& [index, frequency] : expected) EXPECT_NEAR(found.at(index), frequency, 1e-6 * frequency) << index;
}

TEST(Rope, LinearScalingSlowsAllDown) {
  io::RopeConfig config;
  const std::vector<float> plain = rope_frequencies(config, 64);
  config.type = "linear";
  config.factor = 4;
  const std::vector<float> scaled = rope_frequencies(config, 64);
  ASSERT_EQ(scaled.size(), 32U);
  for (size_t i = 0; i < scaled.size(); ++i) EXPECT_FLOAT_EQ(scaled[i], plain[i] / 4);
}

TEST(Rope, TurnsHalvesAgainstEachOther) {
  const RopeTable table({0.5F, 0.01F}, 7, 2);
  std::vector<float> x = {1, 2, 3, 4};
  rotate(x.data(), table.cosine(1), table.sine(1), 4);
  EXPECT_NEAR(x[0], std::cos(4.0) - 3 * std::sin(4.0), 1e-6);  // position 8, 0.5 a position
  EXPECT_NEAR(x[2], 3 * std::cos(4.0) + std::sin(4.0), 1e-6);
  EXPECT_NEAR(x[1], 2 * std::cos(0.08) - 4 * std::sin(0.08), 1e-6);
  EXPECT_NEAR(x[3], 4 * std::cos(0.08) + 2 * std::sin(0.08), 1e-6);
}

}  // namespace
}  // namespace flute::model
