#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/seed.hpp"
#include "flute/error.hpp"
#include "flute/quantize.hpp"
#include "flute/threads.hpp"

namespace flute {
namespace {

double squared_error(const std::vector<float>& weight, int64_t n, int64_t k, const Codebook& codebook,
                     int64_t group_size) {
  const RtnOptions options{
      .group_size = group_size, .scale_dtype = DType::kF32, .max_magnitude = codebook_max_magnitude(codebook, false)};
  const PackedMatrix matrix = quantize_rtn(weight.data(), DType::kF32, n, k, codebook, options);
  std::vector<float> back(weight.size());
  dequantize_rows(matrix.view(), 0, n, DType::kF32, back.data());
  double sum = 0;
  for (size_t i = 0; i < weight.size(); ++i) sum += std::pow(double{weight[i]} - back[i], 2);
  return sum;
}

Codebook fit(const std::vector<float>& weight, int64_t n, int64_t k, int bits, int64_t group_size,
             ThreadPool* threads = nullptr) {
  return fit_kmeans_codebook(weight.data(), DType::kF32, n, k, bits, group_size, threads);
}

void expect_well_formed(const Codebook& codebook, int bits) {
  validate(codebook, "kmeans");
  EXPECT_EQ(codebook.bits, bits);
  EXPECT_EQ(codebook.rows, 1);
  EXPECT_TRUE(std::is_sorted(codebook.values.begin(), codebook.values.end()));
  EXPECT_EQ(codebook_max_magnitude(codebook, false), 1.0f);
}

// The point of fitting: on skewed weights no named table and no jittered copy of the fitted one does better.
TEST(KMeans, LeavesTheLeastError) {
  auto random = fresh_random();
  const int64_t n = 64, k = 512;
  std::vector<float> weight(static_cast<size_t>(n * k));
  for (float& value : weight) value = std::exp(std::normal_distribution<float>(0, 0.7f)(random)) - 0.8f;
  for (const int64_t group_size : {64, -1}) {
    for (const int bits : {2, 3, 4}) {
      const Codebook fitted = fit(weight, n, k, bits, group_size);
      expect_well_formed(fitted, bits);
      const double error = squared_error(weight, n, k, fitted, group_size);
      EXPECT_LT(error, squared_error(weight, n, k, nf_codebook(bits), group_size)) << bits << " bits";
      EXPECT_LT(error, squared_error(weight, n, k, int_codebook(bits), group_size)) << bits << " bits";
      for (int draw = 0; draw < 20; ++draw) {
        Codebook other = fitted;
        for (float& value : other.values) value *= 1 + std::normal_distribution<float>(0, 0.02f)(random);
        // Borders on a grid of 2/8192 cost at most that distance on the few weights between border and grid.
        EXPECT_LE(error, squared_error(weight, n, k, other, group_size) * (1 + 1e-4)) << bits << " bits";
      }
    }
  }
}

// As few distinct weights as there are codes: every one of them gets a value of its own.
TEST(KMeans, FindsTheExactValues) {
  const std::vector<float> levels = {-0.75f, -0.125f, 0.3f, 1.0f};
  std::vector<float> weight(256);
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = levels[i % 4];
  const Codebook fitted = fit(weight, 4, 64, 2, 64);
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(fitted.values[i], levels[i], 1e-6);
}

TEST(KMeans, DegenerateWeightsGiveAUsableTable) {
  for (int bits = 1; bits <= 8; ++bits) {
    expect_well_formed(fit(std::vector<float>(64, 0.0f), 1, 64, bits, 64), bits);
    expect_well_formed(fit(std::vector<float>(64, 3e38f), 1, 64, bits, 64), bits);
    expect_well_formed(fit(std::vector<float>(64, -1e-45f), 2, 32, bits, -1), bits);
    expect_well_formed(fit({}, 0, 64, bits, 64), bits);
  }
}

TEST(KMeans, ThreadsDoNotChangeTheResult) {
  auto random = fresh_random();
  std::vector<float> weight(100 * 96);
  for (float& value : weight) value = std::normal_distribution<float>()(random);
  const Codebook alone = fit(weight, 100, 96, 4, 64);
  for (const int count : {2, 3, 8}) {
    ThreadPool pool(count);
    EXPECT_EQ(fit(weight, 100, 96, 4, 64, &pool).values, alone.values);
  }
}

TEST(KMeans, NamesTheWeightThatIsNotFinite) {
  std::vector<float> weight(128, 1.0f);
  weight[70] = std::nanf("");
  try {
    fit(weight, 2, 64, 4, 64);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "row 1, column 6: expected a finite weight, found nan");
  }
}

}  // namespace
}  // namespace flute
