#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/seed.hpp"
#include "error_of.hpp"
#include "flute/quantize.hpp"
#include "flute/threads.hpp"

namespace flute {
namespace {

double squared_error(const std::vector<float>& weight, const PackedMatrix& matrix) {
  std::vector<float> back(weight.size());
  dequantize_rows(matrix.view(), 0, matrix.n, DType::kF32, back.data());
  double sum = 0;
  for (size_t i = 0; i < weight.size(); ++i) sum += std::pow(double{weight[i]} - back[i], 2);
  return sum;
}

PackedMatrix mse(const std::vector<float>& weight, int64_t n, int64_t k, int bits, const RtnOptions& options,
                 ThreadPool* threads = nullptr) {
  return quantize_mse(weight.data(), DType::kF32, n, k, nf_codebook(bits), options, threads);
}

std::vector<float> normal_weights(int64_t count) {
  auto random = fresh_random();
  std::vector<float> weight(static_cast<size_t>(count));
  for (float& value : weight) value = std::normal_distribution<float>(0, 0.02F)(random);
  return weight;
}

// Rows of one scale are a quantizer of normal numbers, whose least error is known (Max, "Quantizing for minimum
// distortion", 1960, table I). 262,144 numbers estimate it within 1 % (5 standard deviations at 4 bits, whose errors'
// squares deviate by about their mean); 3 % are left for Lloyd's algorithm, which stops early.
TEST(Mse, ReachesTheLeastErrorOfNormalWeights) {
  const int64_t n = 64, k = 4096;
  const std::vector<float> weight = normal_weights(n * k);
  double squares = 0;
  for (const float value : weight) squares += double{value} * value;
  const double least[] = {0.1175, 0.03454, 0.009497};
  for (const int bits : {2, 3, 4}) {
    const PackedMatrix matrix = mse(weight, n, k, bits, {.group_size = -1});
    const double error = squared_error(weight, matrix) / squares;
    EXPECT_LT(error, 1.04 * least[bits - 2]) << bits;
    EXPECT_GT(error, 0.96 * least[bits - 2]) << bits;
  }
}

// The point of it: less error than the table that it begins with leaves under absmax scales, whatever the weights look
// like and K leaves over; where they are bell-shaped also less than the best table for those scales.
TEST(Mse, LeavesLessErrorThanAbsmaxScales) {
  auto random = fresh_random();
  const int64_t n = 96, k = 416;
  const std::vector<float> normal = normal_weights(n * k);
  std::vector<float> skewed(normal.size());
  for (float& value : skewed) value = std::exp(std::normal_distribution<float>(0, 0.7F)(random)) - 0.8F;
  for (const int64_t group_size : {32, 64, 256, -1}) {
    const RtnOptions options{.group_size = group_size};
    for (const int bits : {2, 3, 4}) {
      for (const std::vector<float>* weight : {&normal, &std::as_const(skewed)}) {
        const float* const data = weight->data();
        const Codebook fitted = fit_kmeans_codebook(data, DType::kF32, n, k, bits, group_size);
        const double of_fitted = squared_error(*weight, quantize_rtn(data, DType::kF32, n, k, fitted, options));
        const double from_fitted = squared_error(*weight, quantize_mse(data, DType::kF32, n, k, fitted, options));
        EXPECT_LT(from_fitted, of_fitted) << bits << " bits, group " << group_size;
        const Codebook nf = nf_codebook(bits);
        const double of_nf = squared_error(*weight, quantize_rtn(data, DType::kF32, n, k, nf, options));
        const double from_nf = squared_error(*weight, mse(*weight, n, k, bits, options));
        EXPECT_LT(from_nf, of_nf) << bits << " bits, group " << group_size;
        if (weight == &normal) {
          EXPECT_LT(from_nf, of_fitted) << bits << " bits, group " << group_size;
        }
      }
    }
  }
}

// What is stored is what was chosen: no code has a nearer value, and no scale is negative.
TEST(Mse, CodesAreTheNearest) {
  const int64_t n = 33, k = 160;
  const std::vector<float> weight = normal_weights(n * k);
  const PackedMatrix matrix = mse(weight, n, k, 3, {.group_size = 64, .scale_dtype = DType::kBF16});
  std::vector<uint8_t> codes(static_cast<size_t>(k));
  for (int64_t row = 0; row < n; ++row) {
    unpack_codes(
        std::span(matrix.codes).subspan(static_cast<size_t>(row * k / 32 * 3), static_cast<size_t>(k / 32 * 3)), 3,
        codes);
    for (int64_t j = 0; j < k; ++j) {
      const float scale = load_as_f32(matrix.scales.data(), DType::kBF16, static_cast<size_t>(row * 3 + j / 64));
      EXPECT_GE(scale, 0);
      const float w = weight[static_cast<size_t>(row * k + j)];
      const float found = std::abs(w - matrix.codebook[codes[static_cast<size_t>(j)]] * scale);
      for (const float value : matrix.codebook) {
        EXPECT_LE(found, std::abs(w - value * scale) + 1e-6F * std::abs(w)) << row << ' ' << j;
      }
    }
  }
}

TEST(Mse, ThreadsDoNotChangeAByte) {
  const int64_t n = 300, k = 512;
  const std::vector<float> weight = normal_weights(n * k);
  ThreadPool threads(3);
  const PackedMatrix one = mse(weight, n, k, 4, {}), three = mse(weight, n, k, 4, {}, &threads);
  EXPECT_EQ(one.codes, three.codes);
  EXPECT_EQ(one.scales, three.scales);
  EXPECT_EQ(one.codebook, three.codebook);
}

// Pruned models have zero groups and whole zero matrices.
TEST(Mse, ZerosStayZero) {
  std::vector<float> weight = normal_weights(2 * 128);
  std::fill_n(weight.begin() + 64, 64, 0.0F);
  for (std::vector<float>& one : std::vector<std::vector<float>>{weight, std::vector<float>(2 * 128)}) {
    const PackedMatrix matrix = mse(one, 2, 128, 3, {});
    std::vector<float> back(one.size());
    dequantize_rows(matrix.view(), 0, 2, DType::kF32, back.data());
    for (size_t i = 64; i < 128; ++i) EXPECT_EQ(back[i], 0.0F) << i;
    validate(matrix.view(), "matrix");
  }
}

TEST(Mse, RefusesAsRoundingDoes) {
  std::vector<float> weight = normal_weights(4 * 64);
  weight[64 + 5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(error_of([&] { mse(weight, 4, 64, 3, {}); }), "row 1, column 5: expected a finite weight, found nan");
  weight[64 + 5] = 1e9F;
  EXPECT_NE(error_of([&] { mse(weight, 4, 64, 3, {}); }).find("row 1, group 0: the scale"), std::string::npos);
  weight[64 + 5] = 0;
  EXPECT_EQ(error_of([&] { mse(weight, 4, 64, 3, {.clip = 0.5F}); }),
            "quantize: expected one table to begin with and no clip, found 1 and 0.5");
}

}  // namespace
}  // namespace flute
