#include "quant/feedback_factor.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/fail.hpp"
#include "flute/error.hpp"
#include "flute/threads.hpp"
#include "quant/products.hpp"

namespace flute {
namespace {

constexpr int64_t kBlock = 64;  // rows of the factor that are made together
constexpr int64_t kPart = 256;  // rows or columns of a task

/// The block's own factor, in place, its sums in double; false where a pivot is not positive.
bool factor_diagonal(float* block, int64_t size, int64_t ld) {
  std::vector<double> r(static_cast<size_t>(size * size));
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = i; j < size; ++j) {
      double sum = double{block[i * ld + j]};
      for (int64_t p = 0; p < i; ++p)
        sum -= r[static_cast<size_t>(p * size + i)] * r[static_cast<size_t>(p * size + j)];
      if (j == i) {
        if (!(sum > 0) || !std::isfinite(sum)) return false;
        r[static_cast<size_t>(i * size + i)] = std::sqrt(sum);
      } else {
        r[static_cast<size_t>(i * size + j)] = sum / r[static_cast<size_t>(i * size + i)];
      }
      block[i * ld + j] = static_cast<float>(r[static_cast<size_t>(i * size + j)]);
    }
  }
  return true;
}

/// Upper R with R^T R = matrix, over matrix's upper half; false where it is not positive definite.
bool factor_in_place(float* matrix, int64_t k, ThreadPool* threads) {
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    const int64_t size = std::min(kBlock, k - begin);
    const int64_t end = begin + size;
    float* const diagonal = matrix + begin * k + begin;
    if (!factor_diagonal(diagonal, size, k)) return false;
    const int64_t parts = (k - end + kPart - 1) / kPart;
    parallel_for(threads, parts, [&](int64_t part) {
      const int64_t first = end + part * kPart;
      const int64_t count = std::min(kPart, k - first);
      for (int64_t i = 0; i < size; ++i) {
        float* const row = matrix + (begin + i) * k + first;
        for (int64_t p = 0; p < i; ++p) {
          const float factor = diagonal[p * k + i];
          const float* const other = matrix + (begin + p) * k + first;
          for (int64_t j = 0; j < count; ++j) row[j] -= factor * other[j];
        }
        const float pivot = diagonal[i * k + i];
        for (int64_t j = 0; j < count; ++j) row[j] /= pivot;
      }
    });
    parallel_for(threads, parts * parts, [&](int64_t task) {
      const int64_t row = end + task / parts * kPart, col = end + task % parts * kPart;
      if (col < row) return;
      add_product(matrix + begin * k + row, k, matrix + begin * k + col, k, size, std::min(kPart, k - row),
                  std::min(kPart, k - col), matrix + row * k + col, k, true);
    });
  }
  return true;
}

}  // namespace

FeedbackFactor make_feedback_factor(std::vector<float>& moments, int64_t k, double damp, ThreadPool* threads) {
  const auto diagonal = [&](int64_t i) -> float& { return moments[static_cast<size_t>(i * k + i)]; };
  double mean = 0;
  for (int64_t i = 0; i < k; ++i) mean += double{diagonal(i)} / static_cast<double>(k);
  FeedbackFactor result;
  result.order.resize(static_cast<size_t>(k));
  std::iota(result.order.begin(), result.order.end(), int64_t{0});
  std::stable_sort(result.order.begin(), result.order.end(),
                   [&](int64_t a, int64_t b) { return diagonal(a) < diagonal(b); });
  result.coefficients.resize(moments.size());
  float* const factor = result.coefficients.data();

  // Damping that rounding defeats is a matter of large layers with few, strong directions: ten times more is enough.
  constexpr int kAttempts = 4;
  double step = mean > 0 ? damp * mean : 1.0;
  for (int attempt = 0;; ++attempt, step *= 9) {
    if (attempt == kAttempts)
      fail(ErrorCode::kInvalidArgument, "input moments: expected a matrix that is not negative");
    for (int64_t i = 0; i < k; ++i) diagonal(i) += static_cast<float>(step);
    parallel_for(threads, k, [&](int64_t i) {
      const float* const row = moments.data() + result.order[static_cast<size_t>(i)] * k;
      for (int64_t j = i; j < k; ++j) factor[i * k + j] = row[result.order[static_cast<size_t>(j)]];
    });
    if (factor_in_place(factor, k, threads)) break;
  }
  parallel_for(threads, k, [&](int64_t i) {
    float* const row = factor + i * k;
    const float pivot = row[i];
    for (int64_t j = i + 1; j < k; ++j) row[j] /= pivot;
  });
  // Transposed by pairs of squares, each of which is one task's.
  const int64_t squares = k / kProductUnit;
  parallel_for(threads, squares, [&](int64_t square) {
    for (int64_t other = square; other < squares; ++other) {
      for (int64_t i = square * kProductUnit; i < (square + 1) * kProductUnit; ++i) {
        for (int64_t j = std::max(i + 1, other * kProductUnit); j < (other + 1) * kProductUnit; ++j) {
          std::swap(factor[i * k + j], factor[j * k + i]);
        }
      }
    }
  });
  return result;
}

}  // namespace flute
