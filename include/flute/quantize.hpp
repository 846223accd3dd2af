#pragma once
#include <cstdint>
#include <span>

#include "flute/codebook.hpp"
#include "flute/dtype.hpp"
#include "flute/packed.hpp"

namespace flute {

class ThreadPool;

/// How round-to-nearest (`rtn`) finds scales and codes.
struct RtnOptions {
  int64_t group_size = 64;
  DType scale_dtype = DType::kF16;
  /// The magnitude that absmax is divided by; see codebook_max_magnitude().
  float max_magnitude = 1.0f;
  /// Multiplies absmax before the division, in (0, 1]; 1 is plain absmax.
  float clip = 1.0f;
};

/// Quantizes `weight` ([n, k] row-major, `dtype`, k a multiple of 32) to the nearest values of `codebook`.
/// For each group: s = rn(absmax * clip / m) in the scale's dtype first; then t = fp32(w)/fp32(s), and the code is that
/// of the nearest codebook value, ties to the lower code. s = 0: the code of the value nearest 0. Throws
/// kInvalidArgument naming row and column of the first NaN or infinity, or when a scale is not finite. Rows are shared
/// among the pool's threads (null: the calling thread); the result does not depend on their number.
PackedMatrix quantize_rtn(const void* weight, DType dtype, int64_t n, int64_t k, const Codebook& codebook,
                          const RtnOptions& options, ThreadPool* threads = nullptr);

/// Rows [row_begin, row_end) of the same, written into place (codes, scales of those rows only), single-threaded: the
/// building block for streaming. `target` has its sizes set (see allocate_packed); its row 0 is row `first_row` of the
/// matrix, so that it may hold a part of it.
void quantize_rtn_rows(const void* weight, DType dtype, int64_t row_begin, int64_t row_end, const Codebook& codebook,
                       const RtnOptions& options, PackedMatrix& target, int64_t first_row = 0);

/// A PackedMatrix with every buffer sized and zeroed, the codebook copied in.
PackedMatrix allocate_packed(int64_t n, int64_t k, int64_t group_size, DType scale_dtype, const Codebook& codebook);

/// k-means of the weights normalised by their group's absmax, an error weighted with absmax^2: the table with which
/// quantize_rtn (m = its largest magnitude, which is 1) leaves the least squared error in this matrix. Optimal in one
/// dimension by dynamic programming over a histogram (Wang and Song, "Ckmeans.1d.dp", 2011). Deterministic, ascending,
/// always 2^bits finite values. Throws kInvalidArgument on a NaN or an infinity.
Codebook fit_kmeans_codebook(const void* weight, DType dtype, int64_t n, int64_t k, int bits, int64_t group_size,
                             ThreadPool* threads = nullptr);

}  // namespace flute
