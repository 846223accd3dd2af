#include "quant/products.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/products.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

// A linear-algebra package would be compiled for one instruction set, and a binary that runs everywhere for the oldest
// (SSE2: a quarter of AVX2's speed, an eighth of AVX-512's). Statistics, factorization and feedback are all this one
// product, so it is compiled here for each set that Highway knows.
HWY_BEFORE_NAMESPACE();
namespace flute {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// 8 rows x 2 vectors = 16 sums: enough to hide the latency of a fused multiply-add (4 cycles, 2 a cycle).
constexpr int64_t kTile = 8;
// Rows of a and b at a time: 128 lines of a and, for 64 columns, 16 KB of b stay in a 32 KB first-level cache.
constexpr int64_t kDepth = 64;

template <bool kSubtract>
void tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, float* c, int64_t ldc) {
  const hn::CappedTag<float, 16> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V sum0[kTile], sum1[kTile];
  for (int64_t r = 0; r < kTile; ++r) {
    sum0[r] = hn::LoadU(d, c + r * ldc);
    sum1[r] = hn::LoadU(d, c + r * ldc + lanes);
  }
  for (int64_t i = 0; i < depth; ++i) {
    const V b0 = hn::LoadU(d, b + i * ldb);
    const V b1 = hn::LoadU(d, b + i * ldb + lanes);
    for (int64_t r = 0; r < kTile; ++r) {
      const V value = hn::Set(d, a[i * lda + r]);
      sum0[r] = kSubtract ? hn::NegMulAdd(value, b0, sum0[r]) : hn::MulAdd(value, b0, sum0[r]);
      sum1[r] = kSubtract ? hn::NegMulAdd(value, b1, sum1[r]) : hn::MulAdd(value, b1, sum1[r]);
    }
  }
  for (int64_t r = 0; r < kTile; ++r) {
    hn::StoreU(sum0[r], d, c + r * ldc);
    hn::StoreU(sum1[r], d, c + r * ldc + lanes);
  }
}

template <bool kSubtract>
void product(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, int64_t rows, int64_t cols,
             float* c, int64_t ldc) {
  const auto width = 2 * static_cast<int64_t>(hn::Lanes(hn::CappedTag<float, 16>()));
  for (int64_t begin = 0; begin < depth; begin += kDepth) {
    const int64_t count = depth - begin < kDepth ? depth - begin : kDepth;
    for (int64_t row = 0; row < rows; row += kTile) {
      for (int64_t col = 0; col < cols; col += width) {
        tile<kSubtract>(a + begin * lda + row, lda, b + begin * ldb + col, ldb, count, c + row * ldc + col, ldc);
      }
    }
  }
}

void add_product_loop(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, int64_t rows,
                      int64_t cols, float* c, int64_t ldc, bool subtract) {
  (subtract ? product<true> : product<false>)(a, lda, b, ldb, depth, rows, cols, c, ldc);
}

}  // namespace HWY_NAMESPACE
}  // namespace flute
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flute {

HWY_EXPORT(add_product_loop);

void add_product(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, int64_t rows, int64_t cols,
                 float* c, int64_t ldc, bool subtract) {
  HWY_DYNAMIC_DISPATCH(add_product_loop)(a, lda, b, ldb, depth, rows, cols, c, ldc, subtract);
}

}  // namespace flute
#endif  // HWY_ONCE
