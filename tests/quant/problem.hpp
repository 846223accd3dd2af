#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "flute/error.hpp"
#include "flute/quantize.hpp"
#include "flute/threads.hpp"

namespace flute {

inline std::vector<float> normal(std::mt19937_64& random, int64_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = distribution(random);
  return values;
}

/// Inputs [m, k] that are alike, as a model's are: each is a mix of its neighbour and noise of its own, and some inputs
/// are ten times as large as others.
inline std::vector<float> correlated(std::mt19937_64& random, int64_t m, int64_t k) {
  std::vector<float> x = normal(random, m * k);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 1; j < k; ++j) x[i * k + j] = 0.9F * x[i * k + j - 1] + 0.43F * x[i * k + j];
  }
  for (int64_t i = 0; i < m * k; ++i) x[i] *= i % k % 7 == 0 ? 10.0F : 1.0F;
  return x;
}

inline InputMoments moments_of(const std::vector<float>& x, int64_t k, ThreadPool* threads = nullptr) {
  InputMoments moments(k);
  moments.add(x.data(), k, static_cast<int64_t>(x.size()) / k, threads);
  return moments;
}

inline std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "no error";
}

struct Problem {
  int64_t n = 100, k = 192;  // a strip and a part of one
  std::vector<float> weight;
  std::vector<float> inputs;
};

inline Problem random_problem(std::mt19937_64& random) {
  Problem problem;
  problem.weight = normal(random, problem.n * problem.k);
  problem.inputs = correlated(random, 600, problem.k);
  return problem;
}

/// || X (W - Q)^T ||^2 / || X W^T ||^2, from the definition; with `damp` times the mean square input for each weight.
/// `scales`: what Q's columns are divided by.
inline double output_error(const Problem& problem, const PackedMatrix& matrix, double damp = 0,
                           const std::vector<float>& scales = {}) {
  std::vector<float> q(problem.weight.size());
  dequantize_rows(matrix.view(), 0, problem.n, DType::kF32, q.data());
  for (size_t i = 0; i < q.size() && !scales.empty(); ++i) q[i] /= scales[i % scales.size()];
  double error = 0, all = 0;
  for (size_t token = 0; token < problem.inputs.size(); token += static_cast<size_t>(problem.k)) {
    for (int64_t row = 0; row < problem.n; ++row) {
      double difference = 0, output = 0;
      for (int64_t j = 0; j < problem.k; ++j) {
        const double x = double{problem.inputs[token + j]}, w = double{problem.weight[row * problem.k + j]};
        difference += x * (w - double{q[row * problem.k + j]});
        output += x * w;
      }
      error += difference * difference;
      all += output * output;
    }
  }
  double squares = 0;
  for (const float x : problem.inputs) squares += double{x} * double{x} / static_cast<double>(problem.k);
  for (size_t i = 0; i < q.size(); ++i) {
    const double w = double{problem.weight[i]}, d = w - double{q[i]};
    error += damp * squares * d * d;
    all += damp * squares * w * w;
  }
  return error / all;
}

}  // namespace flute
