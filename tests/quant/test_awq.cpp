#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "base/seed.hpp"
#include "flute/quantize.hpp"
#include "flute/threads.hpp"
#include "quant/problem.hpp"

namespace flute {
namespace {

std::vector<int64_t> all_different(int64_t k) {
  std::vector<int64_t> result(static_cast<size_t>(k));
  std::iota(result.begin(), result.end(), 0);
  return result;
}

std::vector<float> scaled(const std::vector<float>& weight, const std::vector<float>& scales) {
  std::vector<float> result = weight;
  for (size_t i = 0; i < result.size(); ++i) result[i] *= scales[i % scales.size()];
  return result;
}

AwqLayer layer_of(const Problem& problem, const Codebook& codebook) {
  return {problem.weight.data(), DType::kF32, problem.n, codebook, 1.0F};
}

// What the method is for. Every seventh input is ten times as large as its neighbours, and so is what its weights'
// errors do. A scale of 1.5 for it alone, which a group's absmax grows with by less than that, would take half of that;
// a quarter is asked for.
TEST(Awq, LeavesLessOutputErrorThanRoundingToTheSameTable) {
  auto random = fresh_random();
  const Problem problem = random_problem(random);
  const AwqQuantizer quantizer(moments_of(problem.inputs, problem.k), nullptr);
  for (const int64_t group : {32, 64, 128, -1}) {
    for (const int bits : {3, 4}) {
      const Codebook nf = nf_codebook(bits);
      const CalibratedOptions options{.group_size = group};
      const std::vector<AwqLayer> layers = {layer_of(problem, nf)};
      const std::vector<float> scales = quantizer.find_scales(layers, options, all_different(problem.k));
      const std::vector<float> weight = scaled(problem.weight, scales);
      const PackedMatrix found = quantizer.quantize(weight.data(), problem.n, nf, options, scales);
      validate(found.view(), "awq");
      EXPECT_EQ(found.codebook, nf.values);
      const PackedMatrix rounded =
          quantize_rtn(problem.weight.data(), DType::kF32, problem.n, problem.k, nf, {.group_size = group});
      EXPECT_LT(output_error(problem, found, 0, scales), 0.75 * output_error(problem, rounded))
          << bits << " bits, group " << group;
    }
  }
}

// Scales that are found go into one norm or the rows of one projection, which several layers or heads share.
TEST(Awq, InputsThatAreAlikeGetOneScaleThatFollowsTheirMagnitude) {
  auto random = fresh_random();
  const Problem problem = random_problem(random);
  std::vector<int64_t> alike;  // heads of 32 inputs, two of which share their rows
  for (int64_t j = 0; j < problem.k; ++j) alike.push_back(j / 64 * 32 + j % 32);
  const AwqQuantizer quantizer(moments_of(problem.inputs, problem.k), nullptr);
  const Codebook nf = nf_codebook(3);
  const std::vector<AwqLayer> layers = {layer_of(problem, nf), layer_of(problem, nf)};
  const std::vector<float> scales = quantizer.find_scales(layers, {}, alike);
  ASSERT_EQ(scales.size(), alike.size());
  std::set<int64_t> has_large;
  for (int64_t j = 0; j < problem.k; j += 7) has_large.insert(alike[static_cast<size_t>(j)]);
  std::set<float> different;
  float least_of_large = HUGE_VALF, largest_of_small = 0;
  for (size_t j = 0; j < alike.size(); ++j) {
    EXPECT_EQ(scales[j], scales[j % 32 + j / 64 * 64]) << j;
    different.insert(scales[j]);
    if (has_large.contains(alike[j])) {
      least_of_large = std::min(least_of_large, scales[j]);
    } else {
      largest_of_small = std::max(largest_of_small, scales[j]);
    }
  }
  EXPECT_GT(different.size(), alike.size() / 4);
  const auto [least, largest] = std::minmax_element(scales.begin(), scales.end());
  EXPECT_NEAR(*least * *largest, 1, 1e-5);  // so that weights keep their order of magnitude
  EXPECT_GT(least_of_large, largest_of_small);
}

TEST(Awq, ThreadsDoNotChangeTheResult) {
  auto random = fresh_random();
  const Problem problem = random_problem(random);
  const std::vector<AwqLayer> layers = {layer_of(problem, nf_codebook(3))};
  const AwqQuantizer alone(moments_of(problem.inputs, problem.k), nullptr);
  const std::vector<float> scales = alone.find_scales(layers, {}, all_different(problem.k));
  const std::vector<float> weight = scaled(problem.weight, scales);
  const PackedMatrix expected = alone.quantize(weight.data(), problem.n, layers[0].codebook, {}, scales);
  for (const int count : {1, 2, 5}) {
    ThreadPool pool(count);
    const AwqQuantizer shared(moments_of(problem.inputs, problem.k, &pool), &pool);
    EXPECT_EQ(shared.find_scales(layers, {}, all_different(problem.k)), scales) << count;
    const PackedMatrix found = shared.quantize(weight.data(), problem.n, layers[0].codebook, {}, scales);
    EXPECT_EQ(found.codes, expected.codes) << count;
    EXPECT_EQ(found.scales, expected.scales) << count;
  }
}

// Inputs that are always 0, fewer tokens than inputs or none, a matrix of zeros: no NaN, no scale of 0.
TEST(Awq, TakesSingularStatistics) {
  auto random = fresh_random();
  Problem problem = random_problem(random);
  for (const int64_t tokens : {0, 1, 20}) {
    std::vector<float> x = normal(random, tokens * problem.k);
    for (int64_t i = 0; i < tokens; ++i) x[i * problem.k + 5] = 0;
    const AwqQuantizer quantizer(moments_of(x, problem.k), nullptr);
    for (const float factor : {1.0F, 0.0F}) {
      for (float& value : problem.weight) value *= factor;
      const std::vector<AwqLayer> layers = {layer_of(problem, nf_codebook(3))};
      const std::vector<float> scales = quantizer.find_scales(layers, {}, all_different(problem.k));
      for (const float scale : scales) ASSERT_TRUE(std::isfinite(scale) && scale > 0) << scale;
      const std::vector<float> weight = scaled(problem.weight, scales);
      validate(quantizer.quantize(weight.data(), problem.n, layers[0].codebook, {}, scales).view(), "awq");
    }
    problem = random_problem(random);
  }
}

TEST(AwqErrors, NameWhatWasExpected) {
  std::vector<float> x(64, 1.0F), weight(2 * 64, 1.0F);
  x[3] = std::nanf("");
  EXPECT_EQ(message([&] { AwqQuantizer(moments_of(x, 64), nullptr); }),
            "input 3: expected finite activations, found a mean square of nan");
  x[3] = 1;
  const AwqQuantizer quantizer(moments_of(x, 64), nullptr);
  const auto find = [&](const CalibratedOptions& options, const std::vector<int64_t>& alike) {
    const std::vector<AwqLayer> layers = {{weight.data(), DType::kF32, 2, nf_codebook(3), 1.0F}};
    return message([&] { quantizer.find_scales(layers, options, alike); });
  };
  std::vector<int64_t> alike = all_different(64);
  EXPECT_EQ(find({}, alike), "no error");
  EXPECT_EQ(find({.group_size = 48}, alike), "quantize: expected group size 32, 64, 128, 256 or -1, found 48");
  EXPECT_EQ(find({.clip = 0.5F}, alike), "quantize: expected no clip, since awq searches for the scales, found 0.5");
  alike[9] = 64;
  EXPECT_EQ(find({}, alike), "alike: expected numbers from 0 to below 64, found 0 to 64");
  alike[9] = 8;
  EXPECT_EQ(find({}, alike), "alike: expected every number from 0 to 63, found no 9");
  alike.pop_back();
  EXPECT_EQ(find({}, alike), "alike: expected 64 numbers, one for each input, found 63");
  const std::vector<float> few(32, 1.0F);
  EXPECT_EQ(message([&] { quantizer.quantize(weight.data(), 2, nf_codebook(3), {}, few); }),
            "scales: expected 64, one for each input, found 32");
  weight[64 + 9] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(find({}, all_different(64)), "row 1, column 9: expected a finite weight, found inf");
}

}  // namespace
}  // namespace flute
