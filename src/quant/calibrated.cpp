#include <algorithm>
#include <cmath>
#include <utility>

#include "base/fail.hpp"
#include "flute/quantize.hpp"
#include "quant/strip_matrix.hpp"

namespace flute {
namespace {

// How ldlq learns (docs/quantizers.md).
constexpr int kSearches = 2;  // scale searches, each followed by Lloyd's steps for the table
constexpr int kLloydSteps = 10;
constexpr int kRounds = 3;      // of improving the table, then codes and scales, under the whole of H
constexpr int kSweeps = 2;      // over codes and scales a round
constexpr int kTableSteps = 4;  // of conjugate gradients for the table a round

/// Lloyd's algorithm from `table` on, the weights divided by their scales, each counted with H_jj s^2. Ends with a
/// largest magnitude of 1.
std::vector<float> fit_table(StripMatrix& matrix, std::vector<float> table) {
  const size_t size = table.size();
  for (int step = 0; step < kLloydSteps; ++step) {
    const LookupTable lookup(table);
    const std::vector<double> sums = matrix.sum(2 * size, [&](Strip& strip, std::span<double> into) {
      strip.add_lloyd_sums(lookup, into.first(size), into.subspan(size));
    });
    table = lookup.means(std::span(sums).first(size), std::span(sums).subspan(size));
  }
  const float largest = LookupTable(table).max_magnitude();
  if (!(largest > 0)) return table;
  for (float& value : table) value /= largest;
  return table;
}

/// The table that is best given codes and scales: a few steps of conjugate gradients, scaled by the diagonal, on the
/// least-squares problem of its values.
std::vector<float> improve_table(StripMatrix& matrix, std::vector<float> table) {
  const size_t size = table.size();
  const LookupTable lookup(table);
  std::vector<double> residual = matrix.sum(2 * size, [&](Strip& strip, std::span<double> into) {
    strip.add_table_gradient(lookup, into.first(size), into.subspan(size));
  });
  const std::vector<double> diagonal(residual.begin() + static_cast<std::ptrdiff_t>(size), residual.end());
  residual.resize(size);
  const auto scaled = [&](size_t i) { return diagonal[i] > 0 ? residual[i] / diagonal[i] : 0.0; };
  std::vector<double> step(size), direction(size);
  double previous = 0;
  for (int iteration = 0; iteration < kTableSteps; ++iteration) {
    double now = 0;
    for (size_t i = 0; i < size; ++i) now += residual[i] * scaled(i);
    if (!(now > 0)) break;
    for (size_t i = 0; i < size; ++i) direction[i] = scaled(i) + (previous > 0 ? now / previous * direction[i] : 0.0);
    const std::vector<double> product =
        matrix.sum(size, [&](Strip& strip, std::span<double> into) { strip.add_table_product(direction, into); });
    double curvature = 0;
    for (size_t i = 0; i < size; ++i) curvature += direction[i] * product[i];
    if (!(curvature > 0)) break;
    const double length = now / curvature;
    for (size_t i = 0; i < size; ++i) {
      step[i] += length * direction[i];
      residual[i] -= length * product[i];
    }
    previous = now;
  }
  for (size_t i = 0; i < size; ++i) {
    const auto value = static_cast<float>(double{table[i]} + step[i]);
    if (std::isfinite(value)) table[i] = value;
  }
  return table;
}

}  // namespace

struct CalibratedQuantizer::Impl {
  int64_t k;
  std::vector<float> moments;
  FeedbackFactor factor;
  ThreadPool* threads;

  StripContext context(int64_t group_size, DType scale_dtype) const {
    StripContext result = strip_context(k, group_size, scale_dtype);
    result.moments = moments.data();
    result.factor = &factor;
    return result;
  }
};

CalibratedQuantizer::CalibratedQuantizer(InputMoments moments, ThreadPool* threads, double damp) {
  if (!(damp > 0) || !std::isfinite(damp)) {
    fail(ErrorCode::kInvalidArgument, "quantize: expected a damping above 0, found {}", damp);
  }
  const int64_t k = moments.k();
  impl_ = std::make_unique<Impl>(Impl{k, moments.take_mean(), {}, threads});
  impl_->factor = make_feedback_factor(impl_->moments, k, damp, threads);
}

CalibratedQuantizer::CalibratedQuantizer(CalibratedQuantizer&&) noexcept = default;
CalibratedQuantizer& CalibratedQuantizer::operator=(CalibratedQuantizer&&) noexcept = default;
CalibratedQuantizer::~CalibratedQuantizer() = default;
int64_t CalibratedQuantizer::k() const { return impl_->k; }

PackedMatrix CalibratedQuantizer::gptq(const void* weight, DType dtype, int64_t n, const Codebook& codebook,
                                       const CalibratedOptions& options) const {
  check_calibrated(codebook, options, k());
  const StripContext context = impl_->context(options.group_size, options.scale_dtype);
  StripMatrix matrix(context, weight, dtype, n, impl_->threads);
  const LookupTable table(codebook.values);
  matrix.each([&](Strip& strip) {
    strip.set_absmax_scales(options.clip, options.max_magnitude);
    strip.round_with_feedback(table);
  });
  return matrix.pack(codebook, options.group_size);
}

PackedMatrix CalibratedQuantizer::ldlq(const void* weight, DType dtype, int64_t n, const Codebook& codebook,
                                       const CalibratedOptions& options) const {
  check_calibrated(codebook, options, k());
  const StripContext context = impl_->context(options.group_size, options.scale_dtype);
  StripMatrix matrix(context, weight, dtype, n, impl_->threads);
  Codebook learned = codebook;
  float largest = options.max_magnitude;
  const auto search = [&] {
    const LookupTable table(learned.values);
    matrix.each([&](Strip& strip) { strip.search_scales(table, largest); });
  };
  search();
  for (int i = 0; i < kSearches; ++i) {
    learned.values = fit_table(matrix, std::move(learned.values));
    largest = LookupTable(learned.values).max_magnitude();
    if (!(largest > 0)) largest = 1;  // every weight is 0
    search();
  }
  {
    const LookupTable table(learned.values);
    matrix.each([&](Strip& strip) { strip.round_with_feedback(table); });
  }
  for (int round = 0; round < kRounds; ++round) {
    learned.values = improve_table(matrix, std::move(learned.values));
    const LookupTable table(learned.values);
    matrix.each([&](Strip& strip) { strip.improve(table, kSweeps); });
  }
  return matrix.pack(learned, options.group_size);
}

double CalibratedQuantizer::relative_error(const void* weight, DType dtype, const PackedView& quantized) const {
  validate(quantized, "quantized");
  if (quantized.k != k() || quantized.per_row_codebook() || quantized.offsets != nullptr) {
    fail(ErrorCode::kInvalidArgument, "quantized: expected K = {}, one table and no offsets, found K = {}", k(),
         quantized.k);
  }
  const StripContext context = impl_->context(quantized.group_size, quantized.scale_dtype);
  StripMatrix matrix(context, weight, dtype, quantized.n, impl_->threads);
  matrix.unpack(quantized);
  const LookupTable table({quantized.codebook.begin(), quantized.codebook.end()});
  const std::vector<double> sums = matrix.sum(2, [&](Strip& strip, std::span<double> into) {
    into[0] += strip.error(&table);
    into[1] += strip.error(nullptr);
  });
  return sums[1] > 0 ? sums[0] / sums[1] : 0.0;
}

}  // namespace flute
