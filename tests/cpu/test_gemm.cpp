#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/seed.hpp"
#include "cpu/dense_matrix.hpp"
#include "cpu/kernels.hpp"
#include "flute/error.hpp"
#include "flute/gemm.hpp"
#include "flute/threads.hpp"
#include "random_packed.hpp"
#include "shapes.hpp"

namespace flute {
namespace {

// Relative Frobenius errors against float64 on the weights of docs/format.md ("value"), products rounded. 16-bit
// results differ by two roundings, each at most u = 2^-11 or 2^-8 and 0.4 u on average: the result's, and the
// product's, which decode leaves out by scaling sums. Together 0.57 u on average, so that the promise, one u, holds for
// many rows. The errors of a single row's products may agree (two values of a table, one scale) and reach u by
// themselves: few rows have up to a second u, less as their number averages. fp32 sums at most 256 terms at a time:
// 2^-24 * sqrt(256 / 2) = 7e-7, and as much for the sums of K / 256 of them at K = 65536.
double tolerance(DType dtype, int64_t rows) {
  if (dtype == DType::kF32) return 3e-6;
  const double promise = dtype == DType::kF16 ? 5e-4 : 4e-3;
  return rows >= 64 ? promise : promise * (1 + 2 / std::sqrt(static_cast<double>(rows)));
}

struct Draw : PackedDraw {
  int64_t m = 1;
  DType dtype = DType::kF32;
  bool bias = false;
  int64_t pad_x = 0, pad_y = 0;

  std::string text() const {
    return "m " + std::to_string(m) + ", " + PackedDraw::text() + ", " + std::string(dtype_name(dtype)) +
           (bias ? ", bias" : "") + ", pads " + std::to_string(pad_x) + " " + std::to_string(pad_y);
  }
};

Matrix make_matrix(const std::vector<PackedMatrix>& segments) {
  return Matrix::from_packed(Device{}, views_of(segments));
}

std::vector<float> dequantized(const std::vector<PackedMatrix>& segments, DType dtype) {
  std::vector<float> all;
  for (const PackedMatrix& segment : segments) {
    std::vector<std::byte> raw(static_cast<size_t>(segment.n * segment.k) * dtype_size(dtype));
    dequantize_rows(segment.view(), 0, segment.n, dtype, raw.data());
    const size_t begin = all.size(), count = static_cast<size_t>(segment.n * segment.k);
    all.resize(begin + count);
    convert_to_f32(raw.data(), dtype, all.data() + begin, count);
  }
  return all;
}

std::vector<double> reference(const std::vector<float>& weights, const std::vector<float>& x, int64_t m, int64_t n,
                              int64_t k, const std::vector<float>& bias) {
  std::vector<double> y(static_cast<size_t>(m * n));
  for (int64_t t = 0; t < m; ++t) {
    for (int64_t r = 0; r < n; ++r) {
      double sum = bias.empty() ? 0.0 : bias[r];
      for (int64_t i = 0; i < k; ++i) sum += double{x[t * k + i]} * weights[r * k + i];
      y[t * n + r] = sum;
    }
  }
  return y;
}

constexpr size_t kGuard = 256;

/// Multiplies from buffers that end where they must: guard bytes around y must survive, what lies between x's rows is
/// NaN. The error against float64, or infinity when a guard was hurt.
double guarded_error(std::mt19937_64& random, const Draw& draw, const std::vector<float>& weights, int64_t n,
                     const std::function<void(const GemmArgs&)>& run) {
  const int64_t m = draw.m, k = draw.k, ldx = k + draw.pad_x, ldy = n + draw.pad_y;
  const size_t size = dtype_size(draw.dtype);
  // Exactly as many elements as the call may touch: the sanitizers see one more.
  const int64_t x_count = m == 0 ? 0 : (m - 1) * ldx + k, y_count = m == 0 ? 0 : (m - 1) * ldy + n;
  std::vector<std::byte> x = random_values(random, draw.dtype, x_count, -1, 1);
  std::vector<float> plain(static_cast<size_t>(m * k));
  for (int64_t i = 0; i < x_count; ++i) {
    const int64_t t = i / ldx, c = i % ldx;
    if (c < k) {
      plain[t * k + c] = load_as_f32(x.data(), draw.dtype, static_cast<size_t>(i));
    } else {
      store_from_f32(x.data(), draw.dtype, static_cast<size_t>(i), std::numeric_limits<float>::quiet_NaN());
    }
  }
  std::vector<std::byte> bias;
  std::vector<float> plain_bias;
  if (draw.bias) {
    bias = random_values(random, draw.dtype, n, -4, 4);
    plain_bias.resize(static_cast<size_t>(n));
    convert_to_f32(bias.data(), draw.dtype, plain_bias.data(), plain_bias.size());
  }
  constexpr std::byte kMark{0x5a};
  std::vector<std::byte> y(static_cast<size_t>(y_count) * size + 2 * kGuard, kMark);
  GemmArgs args;
  args.m = m;
  args.x = x.data();
  args.ldx = ldx;
  args.y = y.data() + kGuard;
  args.ldy = ldy;
  args.bias = draw.bias ? bias.data() : nullptr;
  args.dtype = draw.dtype;
  run(args);

  for (size_t i = 0; i < y.size(); ++i) {
    const bool inside = i >= kGuard && i < y.size() - kGuard && static_cast<int64_t>((i - kGuard) / size) % ldy < n;
    if (!inside && y[i] != kMark) return std::numeric_limits<double>::infinity();
  }
  const std::vector<double> expected = reference(weights, plain, m, n, k, plain_bias);
  double difference = 0, norm = 0, expected_norm = 0;
  for (int64_t t = 0; t < m; ++t) {
    for (int64_t r = 0; r < n; ++r) {
      const double e = expected[t * n + r];
      const double d = load_as_f32(y.data() + kGuard, draw.dtype, static_cast<size_t>(t * ldy + r)) - e;
      if (std::isnan(d)) return std::numeric_limits<double>::infinity();
      difference += d * d;
      norm += e * e;
      for (int64_t i = 0; i < k; ++i) {
        const double term = double{plain[t * k + i]} * weights[r * k + i];
        expected_norm += term * term;
      }
    }
  }
  // Sums may happen to cancel (a handful of them, or all of a token whose x sums to nothing): then the norm that random
  // signs give on average stands in. Where they do not cancel, the error is relative to the result itself.
  norm = std::max(norm, expected_norm);
  return norm == 0 ? difference : std::sqrt(difference / norm);
}

Draw random_draw(std::mt19937_64& random) {
  constexpr int64_t kGroups[] = {32, 64, 128, 256, -1};
  constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  constexpr int64_t kTokens[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 25, 33, 53};
  Draw draw;
  draw.m = kTokens[random_between(random, 0, std::size(kTokens) - 1)];
  draw.k = 32 * random_between(random, 1, 20);
  const int64_t segments = random_between(random, 0, 3) == 0 ? random_between(random, 2, 4) : 1;
  draw.rows.clear();
  for (int64_t s = 1; s < segments; ++s) draw.rows.push_back(32 * random_between(random, 1, 3));
  draw.rows.push_back(random_between(random, 1, 150));
  draw.bits = static_cast<int>(random_between(random, 1, 8));
  draw.group_size = kGroups[random_between(random, 0, 4)];
  draw.dtype = kTypes[random_between(random, 0, 2)];
  draw.scale_dtype = kTypes[random_between(random, 0, 2)];
  draw.per_row = random_between(random, 0, 5) == 0;
  draw.offsets = random_between(random, 0, 5) == 0;
  draw.bias = random_between(random, 0, 2) == 0;
  draw.pad_x = random_between(random, 0, 1) * random_between(random, 1, 40);
  draw.pad_y = random_between(random, 0, 1) * random_between(random, 1, 40);
  return draw;
}

/// Every test of this suite runs once with each instruction set of this machine.
class Gemm : public ::testing::TestWithParam<const cpu::Kernels*> {
 protected:
  void SetUp() override { cpu::choose_kernels(GetParam()); }
  void TearDown() override { cpu::choose_kernels(nullptr); }
};

INSTANTIATE_TEST_SUITE_P(Targets, Gemm,
                         ::testing::ValuesIn(cpu::available_kernels().begin(), cpu::available_kernels().end()),
                         [](const auto& set) { return std::string(set.param->name); });

TEST_P(Gemm, RandomDrawsAgreeWithFloat64AndStayInTheirBuffers) {
  auto random = fresh_random();
#if defined(__SANITIZE_ADDRESS__)
  constexpr int kDraws = 60;
#else
  constexpr int kDraws = 500;
#endif
  ThreadPool pool(2);
  for (int i = 0; i < kDraws; ++i) {
    const Draw draw = random_draw(random);
    const auto segments = random_segments(random, draw);
    const Matrix matrix = make_matrix(segments);
    const double error = guarded_error(random, draw, dequantized(segments, draw.dtype), draw.n(),
                                       [&](const GemmArgs& args) { gemm(matrix, args, {.threads = &pool}); });
    ASSERT_LE(error, tolerance(draw.dtype, draw.n())) << draw.text();
  }
}

TEST_P(Gemm, IdentityActivationsReturnTheDequantizedMatrix) {
  auto random = fresh_random();
  for (int bits = 1; bits <= 8; ++bits) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const int64_t step : {1, 5, 16, 200}) {  // tokens of a call: the kernels for few tokens and for many
        Draw draw;
        draw.bits = bits;
        draw.k = 160;
        draw.rows = {64, 37};
        draw.dtype = dtype;
        draw.scale_dtype = static_cast<DType>(random_between(random, 0, 2));
        draw.group_size = random_between(random, 0, 1) == 0 ? 64 : -1;
        draw.per_row = random_between(random, 0, 3) == 0;
        draw.offsets = random_between(random, 0, 3) == 0;
        const auto segments = random_segments(random, draw);
        const Matrix matrix = make_matrix(segments);
        const std::vector<float> expected = dequantized(segments, dtype);
        const int64_t n = matrix.n(), k = matrix.k();
        const size_t size = dtype_size(dtype);
        std::vector<std::byte> x(static_cast<size_t>(k * k) * size), y(static_cast<size_t>(k * n) * size);
        for (int64_t i = 0; i < k; ++i) store_from_f32(x.data(), dtype, static_cast<size_t>(i * k + i), 1.0f);
        for (int64_t begin = 0; begin < k; begin += step) {
          GemmArgs args;
          args.m = std::min(step, k - begin);
          args.x = x.data() + static_cast<size_t>(begin * k) * size;
          args.y = y.data() + static_cast<size_t>(begin * n) * size;
          args.dtype = dtype;
          gemm(matrix, args);
        }
        for (int64_t i = 0; i < k; ++i) {
          for (int64_t r = 0; r < n; ++r) {
            ASSERT_EQ(load_as_f32(y.data(), dtype, static_cast<size_t>(i * n + r)), expected[r * k + i])
                << draw.text() << ", tokens at once " << step << ", row " << r << ", k " << i;
          }
        }
      }
    }
  }
}

TEST_P(Gemm, ThreadsDoNotChangeABit) {
  auto random = fresh_random();
  for (const int64_t m : {1, 6, 16, 40, 500}) {
    Draw draw;
    draw.m = m;
    draw.k = 1024;
    draw.rows = {512, 200};
    draw.bits = 3;
    const Matrix matrix = make_matrix(random_segments(random, draw));
    const auto x = random_values(random, draw.dtype, m * draw.k, -1, 1);
    std::vector<float> alone;
    for (const int threads : {1, 2, 3, 8}) {
      ThreadPool pool(threads);
      std::vector<float> y(static_cast<size_t>(m * matrix.n()));
      GemmArgs args;
      args.m = m;
      args.x = x.data();
      args.y = y.data();
      gemm(matrix, args, {.threads = &pool});
      if (alone.empty()) alone = y;
      ASSERT_EQ(std::memcmp(alone.data(), y.data(), y.size() * sizeof(float)), 0) << m << " tokens, " << threads;
    }
  }
}

TEST_P(Gemm, DenseMatricesAgreeWithFloat64) {
  auto random = fresh_random();
  ThreadPool pool(2);
  for (int i = 0; i < 60; ++i) {
    const Draw draw = random_draw(random);
    std::vector<std::vector<std::byte>> data;
    std::vector<cpu::DenseView> views;
    std::vector<float> weights;
    for (const int64_t n : draw.rows) {
      const DType dtype = random_between(random, 0, 3) == 0 ? DType::kF32 : draw.scale_dtype;
      data.push_back(random_values(random, dtype, n * draw.k, -1, 1));
      views.push_back({n, draw.k, dtype, data.back().data()});
      const size_t begin = weights.size(), count = static_cast<size_t>(n * draw.k);
      weights.resize(begin + count);
      convert_to_f32(data.back().data(), dtype, weights.data() + begin, count);
    }
    const cpu::DenseMatrix matrix(views, &pool);
    const double error =
        guarded_error(random, draw, weights, draw.n(), [&](const GemmArgs& args) { matrix.gemm(args, &pool); });
    ASSERT_LE(error, tolerance(draw.dtype, draw.n())) << draw.text();
  }
}

/// The shapes of the models that FLUTE is made for; a few rows of each result are compared with float64.
TEST_P(Gemm, ModelShapes) {
  std::vector<MatrixShape> shapes(std::begin(kAwkwardShapes), std::end(kAwkwardShapes));
  std::vector<int64_t> tokens = {1, 16, 17};
  if (std::getenv("FLUTE_TEST_ALL_SHAPES") != nullptr) {
    shapes.insert(shapes.end(), std::begin(kModelShapes), std::end(kModelShapes));
    tokens.assign(std::begin(kTokenCounts), std::end(kTokenCounts));
  } else {
    shapes.pop_back();  // large
    shapes.insert(shapes.end(), {{1024, 4096}, {64, 28672}});
  }
  auto random = fresh_random();
  ThreadPool pool;
  for (const MatrixShape& shape : shapes) {
    Draw draw;
    draw.k = shape.k;
    draw.rows = {shape.n};
    const auto segments = random_segments(random, draw);
    const Matrix matrix = make_matrix(segments);
    for (const int64_t m : tokens) {
      const auto x = random_values(random, DType::kF32, m * shape.k, -1, 1);
      const auto* values = reinterpret_cast<const float*>(x.data());
      std::vector<float> y(static_cast<size_t>(m * shape.n));
      GemmArgs args;
      args.m = m;
      args.x = x.data();
      args.y = y.data();
      gemm(matrix, args, {.threads = &pool});
      double difference = 0, norm = 0;
      std::vector<float> row(static_cast<size_t>(shape.k));
      // The tolerance is for the mean of many results: the error of one may be several times as large.
      const int64_t samples = std::max<int64_t>(8, 128 / m);
      for (int64_t sample = 0; sample < samples; ++sample) {
        const int64_t r = sample == 0 ? shape.n - 1 : random_between(random, 0, shape.n - 1);
        dequantize_rows(segments[0].view(), r, r + 1, DType::kF32, row.data());
        for (int64_t t = 0; t < m; ++t) {
          double expected = 0;
          for (int64_t i = 0; i < shape.k; ++i) expected += double{values[t * shape.k + i]} * row[i];
          difference += (y[t * shape.n + r] - expected) * (y[t * shape.n + r] - expected);
          norm += expected * expected;
        }
      }
      ASSERT_LE(std::sqrt(difference / norm), tolerance(DType::kF32, shape.n))
          << shape.n << " x " << shape.k << ", m " << m;
    }
  }
}

}  // namespace
}  // namespace flute
