#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "flute/dtype.hpp"

namespace flute {

/// All pointers are device pointers, all calls on the default stream. `T` below is `dtype`, fp16 or bf16.

/// Uniform values in [-1, 1): out[count] of T.
void fill_uniform(void* out, DType dtype, int64_t count, uint64_t seed);

/// y[m, n] = x[m, k] * w[n, k]^T + bias[n] in float64, x's rows `ldx` apart; squares[m, n] are the sums of the squared
/// terms. bias may be null.
void reference_multiply(const void* w, const void* x, int64_t ldx, const void* bias, double* y, double* squares,
                        int64_t m, int64_t n, int64_t k, DType dtype);

/// What became of a buffer of NaN, `guard` elements, then y[m, n] with rows `ldy` apart, then `guard` elements.
struct Comparison {
  double difference = 0, norm = 0, squares = 0;  ///< sums over y of (y - expected)^2, expected^2 and the squares
  unsigned long long not_finite = 0;             ///< elements of y
  unsigned long long outside = 0;                ///< elements elsewhere that are not as they were

  /// Relative Frobenius error. Of few outputs the sums may happen to cancel: the norm that random signs give on average
  /// stands in.
  double error() const;
};
Comparison compare(const void* buffer, int64_t guard, int64_t ldy, const double* y, const double* squares, int64_t m,
                   int64_t n, DType dtype);

/// Keeps the stream busy for some microseconds, then copies `count` 16-bit values.
void slow_copy(const void* from, void* to, int64_t count, cudaStream_t stream);

}  // namespace flute
