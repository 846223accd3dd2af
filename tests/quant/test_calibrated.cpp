#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/seed.hpp"
#include "flute/error.hpp"
#include "flute/quantize.hpp"
#include "flute/threads.hpp"
#include "quant/feedback_factor.hpp"
#include "quant/problem.hpp"
#include "quant/products.hpp"
#include "quant/strip.hpp"

namespace flute {
namespace {

TEST(Products, AreThoseOfTheDefinition) {
  auto random = fresh_random();
  for (const bool subtract : {false, true}) {
    const int64_t depth = 77, rows = 96, cols = 64, lda = 100, ldb = 71, ldc = 65;
    const std::vector<float> a = normal(random, depth * lda), b = normal(random, depth * ldb);
    const std::vector<float> before = normal(random, rows * ldc);
    std::vector<float> c = before;
    add_product(a.data(), lda, b.data(), ldb, depth, rows, cols, c.data(), ldc, subtract);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < ldc; ++j) {
        double sum = 0, magnitude = 0;
        for (int64_t d = 0; j < cols && d < depth; ++d) {
          const double product = double{a[d * lda + i]} * double{b[d * ldb + j]};
          sum += subtract ? -product : product;
          magnitude += std::abs(product);
        }
        // depth + 1 roundings of a float sum at most.
        ASSERT_NEAR(c[i * ldc + j], double{before[i * ldc + j]} + sum, (magnitude + 4) * 78 * 0x1p-24) << i << ' ' << j;
      }
    }
  }
}

TEST(InputMomentsTest, AreTheMeanOfXXt) {
  auto random = fresh_random();
  const int64_t k = 288, m = 70;
  const std::vector<float> x = correlated(random, m, k);
  InputMoments moments(k);
  moments.add(x.data(), k, 30);
  moments.add(x.data() + 30 * k, k, 40);
  const std::vector<float> mean = moments.take_mean();
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      double sum = 0, magnitude = 0;
      for (int64_t t = 0; t < m; ++t) {
        sum += double{x[t * k + i]} * double{x[t * k + j]};
        magnitude += std::abs(double{x[t * k + i]} * double{x[t * k + j]});
      }
      ASSERT_NEAR(mean[i * k + j], sum / m, magnitude / m * 74 * 0x1p-24) << i << ' ' << j;
    }
  }
}

// Feedback rests on it: R^T R = H, so with the order undone, pivots^2 and coefficients give the matrix again.
TEST(FeedbackFactorTest, GivesTheMatrixAgain) {
  auto random = fresh_random();
  const int64_t k = 160;
  std::vector<float> h = moments_of(correlated(random, 400, k), k).take_mean();
  const FeedbackFactor factor = make_feedback_factor(h, k, 0.01, nullptr);
  // R_ij = R_ii c_ji; (R^T R)_jj = sum over i <= j of R_ii^2 c_ji^2, which gives the R_ii one after another.
  const auto c = [&](int64_t i, int64_t j) { return i == j ? 1.0 : double{factor.coefficients[j * k + i]}; };
  std::vector<double> pivots(static_cast<size_t>(k));
  double largest = 0;
  for (int64_t j = 0; j < k; ++j) {
    const double square = double{h[factor.order[j] * (k + 1)]};
    largest = std::max(largest, square);
    if (j > 0) {
      EXPECT_GE(square, double{h[factor.order[j - 1] * (k + 1)]});
    }
    pivots[j] = square;
    for (int64_t i = 0; i < j; ++i) pivots[j] -= pivots[i] * c(i, j) * c(i, j);
    ASSERT_GT(pivots[j], 0);
    for (int64_t l = 0; l < j; ++l) {
      double sum = 0;
      for (int64_t i = 0; i <= l; ++i) sum += pivots[i] * c(i, l) * c(i, j);
      ASSERT_NEAR(sum, double{h[factor.order[l] * k + factor.order[j]]}, 1e-5 * largest) << l << ' ' << j;
    }
  }
}

// What the methods are for. The factors: with inputs of which each is 0.9 of its neighbour, an error's unpredictable
// part, which alone feedback leaves, is (1 - 0.9^2) = 0.19 of its square; half of that gain is asked for, damping and
// the ten times larger inputs taken into account. ldlq searches and learns on top of it.
TEST(Calibrated, LeavesFarLessOutputErrorThanRounding) {
  auto random = fresh_random();
  const Problem problem = random_problem(random);
  for (const int64_t group : {32, 64, 128, -1}) {
    for (const int bits : {2, 3, 4}) {
      const Codebook nf = nf_codebook(bits);
      const CalibratedQuantizer quantizer(moments_of(problem.inputs, problem.k), nullptr);
      const CalibratedOptions options{.group_size = group};
      const PackedMatrix rounded =
          quantize_rtn(problem.weight.data(), DType::kF32, problem.n, problem.k, nf, {.group_size = group});
      const PackedMatrix gptq = quantizer.gptq(problem.weight.data(), DType::kF32, problem.n, nf, options);
      const PackedMatrix ldlq = quantizer.ldlq(problem.weight.data(), DType::kF32, problem.n, nf, options);
      validate(gptq.view(), "gptq");
      validate(ldlq.view(), "ldlq");
      EXPECT_EQ(gptq.codebook, nf.values);
      EXPECT_EQ(gptq.scales, rounded.scales);
      const double plain = output_error(problem, rounded), fed_back = output_error(problem, gptq);
      EXPECT_LT(fed_back, 0.6 * plain) << bits << " bits, group " << group;
      EXPECT_LT(output_error(problem, ldlq), 0.8 * fed_back) << bits << " bits, group " << group;
      // What the quantizer says of a result is what the definition says; both are sums of floats that are some 1e-3 of
      // the products in them.
      const double said = quantizer.relative_error(problem.weight.data(), DType::kF32, gptq.view());
      EXPECT_NEAR(said / output_error(problem, gptq, 0.01), 1.0, 1e-3);
    }
  }
}

// With inputs that have nothing to do with each other, the scale search is an exhaustive one: no ratio leaves less
// squared error in any group.
TEST(Calibrated, ScaleSearchFindsTheBestRatio) {
  auto random = fresh_random();
  const int64_t k = 128, n = 70, group = 64;
  const std::vector<float> weight = normal(random, n * k);
  std::vector<float> identity(static_cast<size_t>(k * k));
  for (int64_t i = 0; i < k; ++i) identity[i * (k + 1)] = 1;
  const LookupTable table(nf_codebook(3).values);
  StripContext context;
  context.k = k;
  context.group = group;
  context.groups = k / group;
  context.scale_dtype = DType::kF16;
  context.moments = identity.data();
  for (int64_t first = 0; first < n; first += kLanes) {
    Strip strip(context, weight.data(), DType::kF32, n, first);
    strip.search_scales(table, 1.0F);
    for (int64_t row = first; row < std::min(n, first + kLanes); ++row) {
      for (int64_t g = 0; g < context.groups; ++g) {
        const float* const w = weight.data() + row * k + g * group;
        const auto error_of = [&](float scale) {
          double sum = 0;
          for (int64_t j = 0; j < group; ++j) {
            double least = std::numeric_limits<double>::infinity();
            for (const float value : table.values) {
              const double d = double{w[j]} - double{value} * double{scale};
              least = std::min(least, d * d);
            }
            sum += least;
          }
          return sum;
        };
        float absmax = 0;
        for (int64_t j = 0; j < group; ++j) absmax = std::max(absmax, std::abs(w[j]));
        double best = std::numeric_limits<double>::infinity();
        for (int ratio = 0; ratio < 29; ++ratio) {
          const auto factor = static_cast<float>(0.4 + 0.7 * ratio / 28);
          best = std::min(best, error_of(round_to(DType::kF16, round_to(DType::kF16, absmax) * factor)));
        }
        // The ratio's last bit may round a scale to fp16's neighbour.
        EXPECT_LE(error_of(strip.scale(g, row - first)), best * 1.002) << row << ' ' << g;
      }
    }
  }
}

// Each step chooses the best of what includes the present state.
TEST(Calibrated, ImprovingNeverMakesWorse) {
  auto random = fresh_random();
  const int64_t k = 224, n = 64;
  const std::vector<float> weight = normal(random, n * k);
  std::vector<float> h = moments_of(correlated(random, 500, k), k).take_mean();
  const FeedbackFactor factor = make_feedback_factor(h, k, 0.01, nullptr);
  for (const int64_t group : {int64_t{64}, k}) {  // the last group is short
    StripContext context{
        .k = k, .group = group, .groups = (k + group - 1) / group, .moments = h.data(), .factor = &factor};
    const LookupTable table(nf_codebook(3).values);
    Strip strip(context, weight.data(), DType::kF32, n, 0);
    strip.search_scales(table, 1.0F);
    const double searched = strip.error(&table);
    strip.round_with_feedback(table);
    double last = strip.error(&table);
    EXPECT_LT(last, searched);
    for (int sweep = 0; sweep < 4; ++sweep) {
      strip.improve(table, 1);
      const double now = strip.error(&table);
      EXPECT_LE(now, last * (1 + 1e-6)) << sweep;
      last = now;
    }
  }
}

TEST(Calibrated, ThreadsDoNotChangeTheResult) {
  auto random = fresh_random();
  const int64_t n = 300, k = 576;
  const std::vector<float> weight = normal(random, n * k);
  const std::vector<float> x = correlated(random, 300, k);
  const CalibratedQuantizer alone(moments_of(x, k), nullptr);
  const PackedMatrix expected = alone.ldlq(weight.data(), DType::kF32, n, nf_codebook(3), {});
  for (const int count : {1, 2, 5}) {
    ThreadPool pool(count);
    const CalibratedQuantizer shared(moments_of(x, k, &pool), &pool);
    const PackedMatrix found = shared.ldlq(weight.data(), DType::kF32, n, nf_codebook(3), {});
    EXPECT_EQ(found.codes, expected.codes) << count;
    EXPECT_EQ(found.scales, expected.scales) << count;
    EXPECT_EQ(found.codebook, expected.codebook) << count;
  }
}

// Inputs that are always 0, two that are the same, fewer tokens than inputs, a matrix of zeros: no NaN, nothing
// refused.
TEST(Calibrated, TakesSingularStatistics) {
  auto random = fresh_random();
  const int64_t n = 40, k = 128;
  for (const int64_t tokens : {0, 1, 20}) {
    std::vector<float> x = normal(random, tokens * k);
    for (int64_t i = 0; i < tokens; ++i) {
      x[i * k + 5] = 0;
      x[i * k + 7] = x[i * k + 6];
    }
    const CalibratedQuantizer quantizer(moments_of(x, k), nullptr);
    for (const float factor : {1.0F, 0.0F}) {
      std::vector<float> weight = normal(random, n * k);
      for (float& value : weight) value *= factor;
      for (const int bits : {1, 3, 8}) {
        const Codebook start = bits == 1 ? Codebook{1, 1, 1, {-1.0F, 1.0F}} : nf_codebook(bits);
        validate(quantizer.gptq(weight.data(), DType::kF32, n, start, {}).view(), "gptq");
        const PackedMatrix learned = quantizer.ldlq(weight.data(), DType::kF32, n, start, {});
        validate(learned.view(), "ldlq");
        if (factor == 0.0F) {
          EXPECT_EQ(quantizer.relative_error(weight.data(), DType::kF32, learned.view()), 0.0);
        }
      }
    }
  }
}

TEST(CalibratedErrors, NameWhatWasExpected) {
  std::vector<float> x(64, 1.0F), weight(2 * 64, 1.0F);
  EXPECT_EQ(message([&] { InputMoments moments(48); }),
            "input moments: expected K to be a positive multiple of 32, found 48");
  x[3] = std::nanf("");
  EXPECT_EQ(message([&] { CalibratedQuantizer(moments_of(x, 64), nullptr); }),
            "input 3: expected finite activations, found a mean square of nan");
  x[3] = 1e30F;
  EXPECT_EQ(message([&] { CalibratedQuantizer(moments_of(x, 64), nullptr); }),
            "input 3: expected finite activations, found a mean square of inf");
  x[3] = 1;
  EXPECT_EQ(message([&] { CalibratedQuantizer(moments_of(x, 64), nullptr, 0.0); }),
            "quantize: expected a damping above 0, found 0");
  const CalibratedQuantizer quantizer(moments_of(x, 64), nullptr);
  const auto ldlq = [&](const CalibratedOptions& options) {
    return message([&] { quantizer.ldlq(weight.data(), DType::kF32, 2, nf_codebook(3), options); });
  };
  EXPECT_EQ(ldlq({}), "no error");
  EXPECT_EQ(ldlq({.group_size = 48}), "quantize: expected group size 32, 64, 128, 256 or -1, found 48");
  weight[64 + 9] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(ldlq({}), "row 1, column 9: expected a finite weight, found -inf");
  weight[64 + 9] = 70000;
  EXPECT_EQ(ldlq({}), "row 1, group 0: the scale 70000 / 1 overflows fp16");
}

}  // namespace
}  // namespace flute
