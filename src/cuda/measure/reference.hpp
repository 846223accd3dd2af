#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/plan.hpp"
#include "flute/dtype.hpp"

namespace flute::cuda {

/// The multiply in float64 on a device, and how far a result is from it: what tests and the laboratory in bench/gpu
/// compare with. All pointers are device pointers, all calls on the default stream; they throw as check() does. T below
/// is `dtype`, fp16 or bf16.

/// Rows [row[s], row[s + 1]) are segment s.
struct RowSegments {
  int count = 1, row[kMaxSegments + 1] = {};
};

/// w[n, k] from codes as the format packs them, scales[n, groups] and codebooks[segments, 2^bits], all of T.
void reference_weights(const uint32_t* packed, int bits, const void* scales, int group_size, const void* codebooks,
                       const RowSegments& segments, void* w, int64_t n, int64_t k, DType dtype);

/// y[m, n] = x[m, k] * w[n, k]^T + bias[n] in float64, all three of T, x's rows `ldx` apart; squares[m, n] are the sums
/// of the squared terms. bias may be null.
void reference_multiply(const void* w, const void* x, int64_t ldx, const void* bias, double* y, double* squares,
                        int64_t m, int64_t n, int64_t k, DType dtype);

/// What became of a buffer of 0xff bytes (NaN): `guard` elements of T, then y[m, n] with rows `ldy` apart, then `guard`
/// elements.
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

/// The error that the library promises for n rows: u, of two roundings of at most u = 2^-11 or 2^-8 and 0.4 u on
/// average (the result's, and the weight's, which decode leaves out by scaling sums). The errors of one row's weights
/// may agree: few rows have up to a second u, less as their number averages.
double promised_error(DType dtype, int64_t n);

}  // namespace flute::cuda
