#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/fail.hpp"
#include "flute/quantize.hpp"
#include "quant/strip_matrix.hpp"

namespace flute {
namespace {

constexpr int kExponents = 20;        // 0, 0.05 .. 0.95: the published implementation's grid
constexpr double kDamp = 0.01;        // times the diagonal's mean, added to the diagonal of H as for gptq and ldlq
constexpr double kLeastInput = 0.01;  // an input counts as at least this many times the root of that mean

/// `exponent` of the classes' magnitudes, for each input; the largest and the least are each other's inverse.
std::vector<float> scales_of(std::span<const double> magnitudes, std::span<const int64_t> alike, double exponent) {
  const auto [least, largest] = std::minmax_element(magnitudes.begin(), magnitudes.end());
  const double middle = std::pow(*least * *largest, exponent / 2);
  std::vector<float> scales;
  for (const int64_t one : alike) {
    scales.push_back(static_cast<float>(std::pow(magnitudes[static_cast<size_t>(one)], exponent) / middle));
  }
  return scales;
}

void check_searched(const Codebook& codebook, const CalibratedOptions& options, int64_t k) {
  check_calibrated(codebook, options, k);
  if (options.clip != 1) {
    fail(ErrorCode::kInvalidArgument, "quantize: expected no clip, since awq searches for the scales, found {}",
         options.clip);
  }
}

}  // namespace

struct AwqQuantizer::Impl {
  int64_t k;
  std::vector<float> moments;  // damped
  std::vector<double> roots;   // of the inputs' mean squares, before
  ThreadPool* threads;

  /// Of inputs divided by `scales`.
  std::vector<float> scaled_moments(std::span<const float> scales) const {
    std::vector<float> result(moments.size());
    parallel_for(threads, k, [&](int64_t i) {
      const float factor = 1.0F / scales[static_cast<size_t>(i)];
      for (int64_t j = 0; j < k; ++j) result[i * k + j] = moments[i * k + j] * factor / scales[static_cast<size_t>(j)];
    });
    return result;
  }

  /// Of the classes: the root of their inputs' mean square.
  std::vector<double> magnitudes(std::span<const int64_t> alike) const {
    const auto [first, last] = std::minmax_element(alike.begin(), alike.end());
    if (*first != 0 || *last >= k) {
      fail(ErrorCode::kInvalidArgument, "alike: expected numbers from 0 to below {}, found {} to {}", k, *first, *last);
    }
    std::vector<double> result(static_cast<size_t>(*last + 1)), counts(result.size());
    for (size_t j = 0; j < alike.size(); ++j) {
      result[static_cast<size_t>(alike[j])] += roots[j] * roots[j];
      counts[static_cast<size_t>(alike[j])] += 1;
    }
    for (size_t i = 0; i < result.size(); ++i) {
      if (counts[i] == 0) {
        fail(ErrorCode::kInvalidArgument, "alike: expected every number from 0 to {}, found no {}", *last, i);
      }
      result[i] = std::sqrt(result[i] / counts[i]);
    }
    return result;
  }

  std::vector<float> scaled_weight(const void* weight, DType dtype, int64_t n, std::span<const float> scales) const {
    std::vector<float> result(static_cast<size_t>(n * k));
    parallel_for(threads, n, [&](int64_t row) {
      float* const to = result.data() + row * k;
      const auto offset = static_cast<size_t>(row * k) * dtype_size(dtype);
      convert_to_f32(static_cast<const std::byte*>(weight) + offset, dtype, to, static_cast<size_t>(k));
      for (int64_t j = 0; j < k; ++j) to[j] *= scales[static_cast<size_t>(j)];
    });
    return result;
  }

  /// What rounding with plain absmax scales leaves of the layers' outputs' error.
  double error(std::span<const AwqLayer> layers, const CalibratedOptions& options,
               std::span<const float> scales) const {
    const std::vector<float> h = scaled_moments(scales);
    StripContext context = strip_context(k, options.group_size, options.scale_dtype);
    context.moments = h.data();
    double total = 0;
    for (const AwqLayer& layer : layers) {
      const std::vector<float> weight = scaled_weight(layer.weight, layer.dtype, layer.n, scales);
      const LookupTable table(layer.codebook.values);
      StripMatrix matrix(context, weight.data(), DType::kF32, layer.n, threads);
      total += matrix.sum(1, [&](Strip& strip, std::span<double> into) {
        strip.round_plainly(table, layer.max_magnitude);
        into[0] += strip.error(&table);
      })[0];
    }
    return total;
  }
};

AwqQuantizer::AwqQuantizer(InputMoments moments, ThreadPool* threads) {
  const int64_t k = moments.k();
  impl_ = std::make_unique<Impl>(Impl{k, moments.take_mean(), std::vector<double>(static_cast<size_t>(k)), threads});
  double mean = 0;
  for (int64_t j = 0; j < k; ++j) mean += double{impl_->moments[j * (k + 1)]} / static_cast<double>(k);
  const double root = mean > 0 ? std::sqrt(mean) : 1.0;
  for (int64_t j = 0; j < k; ++j) {
    float& square = impl_->moments[j * (k + 1)];
    impl_->roots[static_cast<size_t>(j)] = std::max(std::sqrt(double{square}), kLeastInput * root);
    square += static_cast<float>(kDamp * root * root);
  }
}

AwqQuantizer::AwqQuantizer(AwqQuantizer&&) noexcept = default;
AwqQuantizer& AwqQuantizer::operator=(AwqQuantizer&&) noexcept = default;
AwqQuantizer::~AwqQuantizer() = default;

std::vector<float> AwqQuantizer::find_scales(std::span<const AwqLayer> layers, const CalibratedOptions& options,
                                             std::span<const int64_t> alike) const {
  if (static_cast<int64_t>(alike.size()) != impl_->k) {
    fail(ErrorCode::kInvalidArgument, "alike: expected {} numbers, one for each input, found {}", impl_->k,
         alike.size());
  }
  for (const AwqLayer& layer : layers) {
    CalibratedOptions of_layer = options;
    of_layer.max_magnitude = layer.max_magnitude;
    check_searched(layer.codebook, of_layer, impl_->k);
  }
  const std::vector<double> magnitudes = impl_->magnitudes(alike);
  std::vector<float> best;
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kExponents; ++i) {
    std::vector<float> scales = scales_of(magnitudes, alike, static_cast<double>(i) / kExponents);
    const double error = impl_->error(layers, options, scales);
    if (!(error < least) && !best.empty()) continue;
    least = error;
    best = std::move(scales);
  }
  return best;
}

PackedMatrix AwqQuantizer::quantize(const float* weight, int64_t n, const Codebook& codebook,
                                    const CalibratedOptions& options, std::span<const float> scales) const {
  if (static_cast<int64_t>(scales.size()) != impl_->k) {
    fail(ErrorCode::kInvalidArgument, "scales: expected {}, one for each input, found {}", impl_->k, scales.size());
  }
  check_searched(codebook, options, impl_->k);
  const std::vector<float> h = impl_->scaled_moments(scales);
  StripContext context = strip_context(impl_->k, options.group_size, options.scale_dtype);
  context.moments = h.data();
  const LookupTable table(codebook.values);
  StripMatrix matrix(context, weight, DType::kF32, n, impl_->threads);
  matrix.each([&](Strip& strip) { strip.search_scales(table, options.max_magnitude); });
  return matrix.pack(codebook, options.group_size);
}

}  // namespace flute
