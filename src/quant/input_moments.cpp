#include <algorithm>
#include <cmath>

#include "base/checked.hpp"
#include "base/fail.hpp"
#include "flute/quantize.hpp"
#include "flute/threads.hpp"
#include "quant/products.hpp"

namespace flute {
namespace {

// A task's part of the sum: with 64 inputs at a time its operands stay in a core's caches.
constexpr int64_t kPart = 256;

}  // namespace

InputMoments::InputMoments(int64_t k) : k_(k) {
  const int64_t shape[] = {k, k, static_cast<int64_t>(sizeof(float))};
  if (k < 1 || k % kProductUnit != 0 || !checked_product(shape)) {
    fail(ErrorCode::kInvalidArgument, "input moments: expected K to be a positive multiple of {}, found {}",
         kProductUnit, k);
  }
  sums_.resize(static_cast<size_t>(k) * static_cast<size_t>(k));
}

void InputMoments::add(const float* x, int64_t ldx, int64_t m, ThreadPool* threads) {
  const int64_t parts = (k_ + kPart - 1) / kPart;
  parallel_for(threads, parts * parts, [&](int64_t task) {
    const int64_t row = task / parts * kPart, col = task % parts * kPart;
    if (col < row) return;  // the matrix is symmetric
    add_product(x + row, ldx, x + col, ldx, m, std::min(kPart, k_ - row), std::min(kPart, k_ - col),
                sums_.data() + row * k_ + col, k_);
  });
  count_ += m;
}

std::vector<float> InputMoments::take_mean() {
  const float factor = count_ > 0 ? 1.0F / static_cast<float>(count_) : 0.0F;
  for (int64_t row = 0; row < k_; ++row) {
    for (int64_t col = row; col < k_; ++col) {
      const float mean = sums_[static_cast<size_t>(row * k_ + col)] * factor;
      sums_[static_cast<size_t>(row * k_ + col)] = mean;
      sums_[static_cast<size_t>(col * k_ + row)] = mean;
    }
    const float square = sums_[static_cast<size_t>(row * k_ + row)];
    if (!std::isfinite(square)) {
      fail(ErrorCode::kInvalidArgument, "input {}: expected finite activations, found a mean square of {}", row,
           square);
    }
  }
  return std::move(sums_);
}

}  // namespace flute
