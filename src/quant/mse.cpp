#include <algorithm>
#include <bit>
#include <cmath>
#include <exception>
#include <limits>
#include <utility>
#include <vector>

#include "base/fail.hpp"
#include "flute/quantize.hpp"
#include "flute/threads.hpp"
#include "quant/lookup_table.hpp"
#include "quant/scale_ratios.hpp"

namespace flute {
namespace {

constexpr int kSearches = 2;  // of scales, each followed by Lloyd's steps for the table
constexpr int kLloydSteps = 10;
constexpr int kRounds = 4;  // of least squares: the scales given codes and table, then the table

/// A group's codes under a scale, and the sums that follow from them.
class Group {
 public:
  explicit Group(int64_t size) : codes_(static_cast<size_t>(size)), zeros_(static_cast<size_t>(size)) {}

  void round(std::span<const float> weights, const LookupTable& table, float scale) {
    nearest_codes(table.nearest, scale == 0 ? zeros_.data() : weights.data(), scale == 0 ? 1.0F : scale, weights.size(),
                  codes_.data());
  }
  std::span<const uint8_t> codes() const { return codes_; }

  /// Sum of (w - v s)^2, v the codes' values.
  double error(std::span<const float> weights, const LookupTable& table, float scale) const {
    double sum = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const float d = weights[i] - table.values[codes_[i]] * scale;
      sum += double{d} * double{d};
    }
    return sum;
  }

  /// The scale of the least error given the codes; `old` where there is none above 0.
  float best_scale(std::span<const float> weights, const LookupTable& table, float old) const {
    double numerator = 0, denominator = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const double v = double{table.values[codes_[i]]};
      numerator += v * double{weights[i]};
      denominator += v * v;
    }
    const auto scale = static_cast<float>(numerator / denominator);
    return std::isfinite(scale) && scale > 0 ? scale : old;
  }

 private:
  std::vector<uint8_t> codes_;
  std::vector<float> zeros_;
};

class Fit {
 public:
  Fit(const void* weight, DType dtype, PackedMatrix& result, ThreadPool* threads)
      : weight_(weight),
        dtype_(dtype),
        result_(result),
        threads_(threads),
        group_(result.group_size < 0 ? result.k : std::min(result.group_size, result.k)),
        groups_(result.view().groups()),
        scales_(static_cast<size_t>(result.n * groups_)) {}

  /// Of every group, whose weights quantize_rtn has checked.
  void read_absmax() {
    absmax_.resize(scales_.size());
    for_groups([](std::span<const float> weights, float& absmax, Group&,
                  std::span<double>) { absmax = std::bit_cast<float>(absmax_bits(weights.data(), weights.size())); },
               absmax_);
  }

  void search_scales(const LookupTable& table) {
    float largest = table.max_magnitude();
    if (!(largest > 0)) largest = 1;  // every weight is 0
    std::vector<float> found = absmax_;
    for_groups(
        [&](std::span<const float> weights, float& scale, Group& group, std::span<double>) {
          const float unit = scale / largest;
          double least = std::numeric_limits<double>::infinity();
          for (int i = 0; i < kScaleRatios; ++i) {
            const float candidate = round_to(result_.scale_dtype, unit * scale_ratio(i));
            if (!std::isfinite(candidate)) continue;
            group.round(weights, table, candidate);
            const double error = group.error(weights, table, candidate);
            if (!(error < least)) continue;
            least = error;
            scale = candidate;
          }
        },
        found);
    scales_ = std::move(found);
  }

  /// Each value becomes the best one of the weights that are nearest to it.
  std::vector<float> lloyd_step(const LookupTable& table) {
    const size_t size = table.values.size();
    const std::vector<double> sums = for_groups(
        [&](std::span<const float> weights, float& scale, Group& group, std::span<double> into) {
          group.round(weights, table, scale);
          for (size_t i = 0; i < weights.size(); ++i) {
            const uint8_t code = group.codes()[i];
            into[code] += double{scale} * double{scale};
            into[size + code] += double{scale} * double{weights[i]};
          }
        },
        scales_, 2 * size);
    return table.means(std::span(sums).first(size), std::span(sums).subspan(size));
  }

  /// Each scale becomes the best one given its codes, where that leaves less in the scales' dtype, too.
  void improve_scales(const LookupTable& table) {
    for_groups(
        [&](std::span<const float> weights, float& scale, Group& group, std::span<double>) {
          group.round(weights, table, scale);
          const float better = round_to(result_.scale_dtype, group.best_scale(weights, table, scale));
          if (std::isfinite(better) && group.error(weights, table, better) < group.error(weights, table, scale)) {
            scale = better;
          }
        },
        scales_);
  }

  void store(const LookupTable& table) {
    const int64_t words = result_.view().words_per_row();
    for_rows([&](int64_t row, std::span<const float> weights, Group& group, std::span<double>) {
      std::vector<uint8_t> codes(weights.size());
      for (int64_t g = 0; g < groups_; ++g) {
        const auto index = static_cast<size_t>(row * groups_ + g);
        const std::span<const float> of_group = part(weights, g);
        group.round(of_group, table, scales_[index]);
        std::copy_n(group.codes().begin(), of_group.size(), codes.begin() + g * group_);
        store_from_f32(result_.scales.data(), result_.scale_dtype, index, scales_[index]);
      }
      pack_codes(codes, result_.bits, std::span(result_.codes).subspan(row * words, words));
    });
    result_.codebook = table.values;
  }

 private:
  std::span<const float> part(std::span<const float> row, int64_t g) const {
    return row.subspan(static_cast<size_t>(g * group_), static_cast<size_t>(std::min(group_, result_.k - g * group_)));
  }

  /// body(row, weights, group, sums) for all rows; returns the sums, which are added up in the rows' order.
  template <typename Body>
  std::vector<double> for_rows(const Body& body, size_t count = 0) {
    const int64_t rows = std::max<int64_t>(1, 65536 / result_.k);  // a task: about a millisecond
    const int64_t tasks = (result_.n + rows - 1) / rows;
    std::vector<std::vector<double>> parts(static_cast<size_t>(tasks), std::vector<double>(count));
    parallel_for(threads_, tasks, [&](int64_t task) {
      std::vector<float> weights(static_cast<size_t>(result_.k));
      Group group(group_);
      for (int64_t row = task * rows; row < std::min((task + 1) * rows, result_.n); ++row) {
        const auto offset = static_cast<size_t>(row * result_.k) * dtype_size(dtype_);
        convert_to_f32(static_cast<const std::byte*>(weight_) + offset, dtype_, weights.data(), weights.size());
        body(row, std::span<const float>(weights), group, std::span(parts[static_cast<size_t>(task)]));
      }
    });
    std::vector<double> total(count);
    for (const std::vector<double>& one : parts) {
      for (size_t i = 0; i < count; ++i) total[i] += one[i];
    }
    return total;
  }

  /// body(weights, value, group, sums) for all groups, each with its own of `values`.
  template <typename Body>
  std::vector<double> for_groups(const Body& body, std::vector<float>& values, size_t count = 0) {
    return for_rows(
        [&](int64_t row, std::span<const float> weights, Group& group, std::span<double> sums) {
          for (int64_t g = 0; g < groups_; ++g) {
            body(part(weights, g), values[static_cast<size_t>(row * groups_ + g)], group, sums);
          }
        },
        count);
  }

  const void* weight_;
  DType dtype_;
  PackedMatrix& result_;
  ThreadPool* threads_;
  int64_t group_, groups_;
  std::vector<float> absmax_, scales_;  // [n, groups]
};

}  // namespace

PackedMatrix quantize_mse(const void* weight, DType dtype, int64_t n, int64_t k, const Codebook& codebook,
                          const RtnOptions& options, ThreadPool* threads) {
  if (codebook.rows != 1 || options.clip != 1) {
    fail(ErrorCode::kInvalidArgument, "quantize: expected one table to begin with and no clip, found {} and {}",
         codebook.rows, options.clip);
  }
  PackedMatrix result = quantize_rtn(weight, dtype, n, k, codebook, options, threads);
  Fit fit(weight, dtype, result, threads);
  fit.read_absmax();
  std::vector<float> values = codebook.values;
  fit.search_scales(LookupTable(values));
  for (int i = 0; i < kSearches; ++i) {
    for (int step = 0; step < kLloydSteps; ++step) values = fit.lloyd_step(LookupTable(values));
    fit.search_scales(LookupTable(values));
  }
  for (int round = 0; round < kRounds; ++round) {
    fit.improve_scales(LookupTable(values));
    values = fit.lloyd_step(LookupTable(values));
  }
  fit.store(LookupTable(values));
  return result;
}

}  // namespace flute
