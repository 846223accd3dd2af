#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "flute/error.hpp"
#include "model/sampling.hpp"

namespace flute::model {
namespace {

std::map<int32_t, int> draw(const SamplingOptions& options, const std::vector<float>& logits, int count) {
  Sampler sampler(options);
  std::map<int32_t, int> counts;
  for (int i = 0; i < count; ++i) ++counts[sampler.next(logits)];
  return counts;
}

SamplingOptions options(float temperature, float top_p = 1, int top_k = 0, uint64_t seed = 1) {
  SamplingOptions result;
  result.temperature = temperature;
  result.top_p = top_p;
  result.top_k = top_k;
  result.seed = seed;
  return result;
}

// Probabilities 0.5, 0.25, 0.125, 0.125 of ids 2, 0, 1, 3.
const std::vector<float> kLogits = {std::log(2.0F), 0.0F, std::log(4.0F), 0.0F};

TEST(Sampling, TemperatureZeroTakesTheFirstOfTheLargest) {
  EXPECT_EQ(Sampler({}).next(std::vector<float>{1, 5, 5, 2}), 1);
}

TEST(Sampling, DrawsInProportionToTheProbabilities) {
  constexpr int kDraws = 40000;
  const auto counts = draw(options(1), kLogits, kDraws);
  const std::array<double, 4> expected = {0.25, 0.125, 0.5, 0.125};
  for (const auto& [id, count] : counts) {
    const double p = expected.at(static_cast<size_t>(id));
    EXPECT_NEAR(count, kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p))) << id;  // 5 standard deviations, seed fixed
  }
}

TEST(Sampling, TemperatureSharpens) {
  constexpr int kDraws = 40000;
  const double p = 16.0 / (16 + 4 + 1 + 1);  // squares of the weights
  EXPECT_NEAR(draw(options(0.5F), kLogits, kDraws).at(2), kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p)));
}

TEST(Sampling, TopKAndTopPLeaveTheMostProbable) {
  const auto ids_of = [](const std::map<int32_t, int>& counts) {
    std::vector<int32_t> ids;
    for (const auto& entry : counts) ids.push_back(entry.first);
    return ids;
  };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(ids_of(draw(options(1, 1, 2), kLogits, 1000)), (Ids{0, 2}));
  EXPECT_EQ(ids_of(draw(options(1, 1, 3), kLogits, 1000)), (Ids{0, 1, 2}));  // of equal ones the lower id
  EXPECT_EQ(ids_of(draw(options(1, 0.6F), kLogits, 1000)), (Ids{0, 2}));
  EXPECT_EQ(ids_of(draw(options(1, 0.8F), kLogits, 1000)), (Ids{0, 1, 2}));
  EXPECT_EQ(ids_of(draw(options(1, 0), kLogits, 100)), (Ids{2}));
  EXPECT_EQ(ids_of(draw(options(1, 0.7F, 2), kLogits, 1000)), (Ids{0, 2}));  // 2/3 of the two is not 0.7 yet
  EXPECT_EQ(ids_of(draw(options(1, 0.6F, 2), kLogits, 1000)), (Ids{2}));
  EXPECT_EQ(ids_of(draw(options(1, 1, 99), kLogits, 2000)), (Ids{0, 1, 2, 3}));
}

TEST(Sampling, TheSameSeedDrawsTheSame) {
  Sampler a(options(1, 1, 0, 7)), b(options(1, 1, 0, 7)), c(options(1, 1, 0, 8));
  std::vector<int32_t> of_a, of_b, of_c;
  for (int i = 0; i < 64; ++i) {
    of_a.push_back(a.next(kLogits));
    of_b.push_back(b.next(kLogits));
    of_c.push_back(c.next(kLogits));
  }
  EXPECT_EQ(of_a, of_b);
  EXPECT_NE(of_a, of_c);
}

TEST(Sampling, RefusesOptionsOutOfRange) {
  EXPECT_THROW(Sampler(options(-1)), Error);
  EXPECT_THROW(Sampler(options(std::numeric_limits<float>::quiet_NaN())), Error);
  EXPECT_THROW(Sampler(options(1, 1.5F)), Error);
  EXPECT_THROW(Sampler(options(1, 1, -1)), Error);
}

}  // namespace
}  // namespace flute::model
