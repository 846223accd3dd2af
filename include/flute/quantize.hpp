#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

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

/// Round-to-nearest with scales and table chosen to leave little squared error in the weights: scales by a search over
/// 29 multiples of absmax, a table of the matrix's own by Lloyd's algorithm from `codebook` (one row) on, in turns,
/// then both by least squares (docs/quantizers.md). `options.clip` is 1. Deterministic for any number of threads.
/// Throws as quantize_rtn does.
PackedMatrix quantize_mse(const void* weight, DType dtype, int64_t n, int64_t k, const Codebook& codebook,
                          const RtnOptions& options, ThreadPool* threads = nullptr);

/// What calibration knows of a layer's inputs: the sum of x x^T over them.
class InputMoments {
 public:
  /// Throws kInvalidArgument unless k is a positive multiple of 32.
  explicit InputMoments(int64_t k);
  /// Adds m inputs, rows of k values that lie ldx apart. Sums are fp32; the result does not depend on the number of
  /// threads.
  void add(const float* x, int64_t ldx, int64_t m, ThreadPool* threads = nullptr);
  int64_t k() const { return k_; }
  int64_t count() const { return count_; }  ///< of inputs
  /// The whole symmetric matrix [k, k] divided by count(), and nothing is left here. Throws kInvalidArgument naming the
  /// first input whose values were not finite.
  std::vector<float> take_mean();

 private:
  int64_t k_, count_ = 0;
  std::vector<float> sums_;  // [k, k], complete on and above the diagonal
};

/// How a CalibratedQuantizer finds scales, codes and table.
struct CalibratedOptions {
  int64_t group_size = 64;
  DType scale_dtype = DType::kF16;
  /// The magnitude that absmax is divided by; see codebook_max_magnitude().
  float max_magnitude = 1.0f;
  /// Multiplies absmax before the division, in (0, 1].
  float clip = 1.0f;
};

/// Quantizes linear layers that share their inputs so that the layers' outputs, not the weights, stay what they were:
/// for each row w the error is (w - q) H (w - q)^T, H being the inputs' mean x x^T plus `damp` times its mean diagonal
/// on the diagonal. docs/quantizers.md derives the methods. Deterministic for any number of threads.
class CalibratedQuantizer {
 public:
  /// Factors H, which takes k^3 / 3 multiplications and two [k, k] matrices of fp32. Throws kInvalidArgument where
  /// `moments` are not finite or damp is not above 0. `threads` (null: the calling thread) outlives the quantizer.
  CalibratedQuantizer(InputMoments moments, ThreadPool* threads, double damp = 0.01);
  CalibratedQuantizer(CalibratedQuantizer&&) noexcept;
  CalibratedQuantizer& operator=(CalibratedQuantizer&&) noexcept;
  ~CalibratedQuantizer();
  int64_t k() const;

  /// Rounding with error feedback, the inputs of largest mean square first, to a fixed table of one row and with
  /// quantize_rtn's scales (Frantar et al., "GPTQ", 2023). `weight` is [n, k()] row-major. Throws kInvalidArgument as
  /// quantize_rtn does.
  PackedMatrix gptq(const void* weight, DType dtype, int64_t n, const Codebook& codebook,
                    const CalibratedOptions& options) const;
  /// The same with everything learned: scales that minimise the error within their group, a table fitted to this matrix
  /// beginning with `codebook`, feedback, and then table, scales and codes improved in turns under the whole of H.
  PackedMatrix ldlq(const void* weight, DType dtype, int64_t n, const Codebook& codebook,
                    const CalibratedOptions& options) const;
  /// sum over the rows of (w - q) H (w - q)^T divided by that of w H w^T: the squared relative error of the outputs.
  double relative_error(const void* weight, DType dtype, const PackedView& quantized) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// One of the layers that AwqQuantizer scales together: [n, k], and the table that it is going to be rounded to.
struct AwqLayer {
  const void* weight;
  DType dtype;
  int64_t n;
  Codebook codebook;
  float max_magnitude;  ///< of the table; CalibratedOptions' own does not count
};

/// Activation-aware scaling (Lin et al., "AWQ", 2023): the columns of layers that share their inputs are multiplied by
/// scales, larger where inputs are larger, which whatever makes the inputs is divided by. Rounding to any table then
/// leaves less error where it counts; docs/quantizers.md says more. Deterministic for any number of threads.
class AwqQuantizer {
 public:
  /// Throws kInvalidArgument where `moments` are not finite. `threads` (null: the calling thread) outlives the
  /// quantizer.
  AwqQuantizer(InputMoments moments, ThreadPool* threads);
  AwqQuantizer(AwqQuantizer&&) noexcept;
  AwqQuantizer& operator=(AwqQuantizer&&) noexcept;
  ~AwqQuantizer();
  /// The scales [k]: of magnitude^a, a = 0, 0.05 .. 0.95, those with which rounding with absmax scales leaves the least
  /// output error in the layers together, a magnitude being the root of an input's mean square. Inputs j with the same
  /// alike[j] (numbered from 0 on) get the same scale. `options.clip` is 1. Throws kInvalidArgument as quantize_rtn
  /// does.
  std::vector<float> find_scales(std::span<const AwqLayer> layers, const CalibratedOptions& options,
                                 std::span<const int64_t> alike) const;
  /// Rounds a weight [n, k] whose columns have been multiplied by `scales` to `codebook`, with the scales of groups
  /// that leave the least output error (as CalibratedQuantizer::ldlq searches for them).
  PackedMatrix quantize(const float* weight, int64_t n, const Codebook& codebook, const CalibratedOptions& options,
                        std::span<const float> scales) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace flute
