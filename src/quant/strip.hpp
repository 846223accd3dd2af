#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "flute/dtype.hpp"
#include "quant/feedback_factor.hpp"
#include "quant/lookup_table.hpp"

namespace flute {

/// Rows of a matrix that are quantized side by side: vectors run along them, and a strip's errors [k, kLanes] pass
/// through a core's second-level cache in pieces.
constexpr int64_t kLanes = 64;

/// What all strips of a matrix share.
struct StripContext {
  int64_t k = 0, group = 0, groups = 0;  ///< group: weights that share a scale, at most k
  DType scale_dtype = DType::kF16;
  const float* moments = nullptr;  ///< H, [k, k]
  const FeedbackFactor* factor = nullptr;
  int64_t group_end(int64_t g) const { return (g + 1) * group < k ? (g + 1) * group : k; }
  float square(int64_t input) const { return moments[input * k + input]; }
};

/// kLanes rows of a matrix, transposed; those that the matrix lacks are zero. Members' functions run on one thread.
class Strip {
 public:
  /// Rows [first_row, first_row + kLanes) of `weight` [n, k]. Throws kInvalidArgument on a NaN or an infinity.
  Strip(const StripContext& context, const void* weight, DType dtype, int64_t n, int64_t first_row);

  /// Scales ratio * absmax / max_magnitude in the scale's dtype. Throws where one overflows.
  void set_absmax_scales(float ratio, float max_magnitude);
  /// Those with ratio 1, and nearest codes.
  void round_plainly(const LookupTable& table, float max_magnitude);
  /// Of 29 ratios from 0.4 to 1.1 of absmax / max_magnitude the one whose plain rounding leaves the least d H d^T
  /// within the group (within each 256 weights of a longer one), and its codes.
  void search_scales(const LookupTable& table, float max_magnitude);
  /// Nearest codes, and for each code what Lloyd's step needs: the sums of H_jj s^2 and of H_jj s w_j.
  void add_lloyd_sums(const LookupTable& table, std::span<double> weights, std::span<double> values);
  /// Codes by rounding with error feedback.
  void round_with_feedback(const LookupTable& table);
  /// Each weight's code in turn becomes the best one given all others, and each group's scale the best one given its
  /// codes. Never increases the error. `sweeps` times over the whole strip.
  void improve(const LookupTable& table, int sweeps);
  /// Adds to `gradient` for each code: sum of s (H (w - q))_j over its weights; to `diagonal`: of H_jj s^2.
  void add_table_gradient(const LookupTable& table, std::span<double> gradient, std::span<double> diagonal) const;
  /// Adds to `product` what the normal matrix of the table's least squares makes of `direction`.
  void add_table_product(std::span<const double> direction, std::span<double> product) const;
  /// d H d^T summed over the rows, d = w - q, or w where there is no table.
  double error(const LookupTable* table) const;

  void set(int64_t input, int64_t lane, uint8_t code) { codes_[index(input, lane)] = code; }
  uint8_t code(int64_t input, int64_t lane) const { return codes_[index(input, lane)]; }
  float scale(int64_t g, int64_t lane) const { return scales_[index(g, lane)]; }
  void set_scale(int64_t g, int64_t lane, float value) { scales_[index(g, lane)] = value; }

 private:
  static size_t index(int64_t row, int64_t lane) { return static_cast<size_t>(row * kLanes + lane); }
  float round_scale(float value) const;
  /// H times `values` [k, kLanes].
  std::vector<float> multiply(const std::vector<float>& values) const;
  std::vector<float> errors(const LookupTable& table) const;
  float improve_scale(int64_t g, int64_t lane, double numerator, double denominator) const;

  const StripContext* context_;
  int64_t first_row_;
  std::vector<float> weights_;  // [k, kLanes]
  std::vector<uint8_t> codes_;  // [k, kLanes]
  std::vector<float> scales_;   // [groups, kLanes]
};

}  // namespace flute
