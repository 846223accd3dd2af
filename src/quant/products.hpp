#pragma once
#include <cstdint>

namespace flute {

/// Sizes of products are multiples of it: the longest vector pair there is, and a whole number of register tiles.
constexpr int64_t kProductUnit = 32;

/// c[rows, cols] += a^T b (or -= with `subtract`), a [depth, rows], b [depth, cols], row-major with leading dimensions.
/// rows and cols are multiples of kProductUnit, depth is any. On the calling thread; sums run along depth, so a part of
/// c is the same whatever else is computed with it.
void add_product(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, int64_t rows, int64_t cols,
                 float* c, int64_t ldc, bool subtract = false);

}  // namespace flute
