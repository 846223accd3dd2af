#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <vector>

#include "base/fail.hpp"
#include "flute/quantize.hpp"
#include "flute/threads.hpp"
#include "format/shape.hpp"

namespace flute {
namespace {

// Cluster borders fall on the bins' edges, 1/4096 of absmax apart; the sums within the bins are exact.
constexpr int kBins = 8192;

/// Weighted moments of the normalised weights in [-1, 1], a bin each.
struct Histogram {
  std::vector<double> weight = std::vector<double>(kBins);
  std::vector<double> sum = std::vector<double>(kBins);

  void add(double x, double w) {
    const int bin = std::min(static_cast<int>((x + 1) * (0.5 * kBins)), kBins - 1);
    weight[bin] += w;
    sum[bin] += w * x;
  }
};

/// The clusters [border[i], border[i + 1]) of bins with the least squared error, the last one's centre being 1.
struct Clusters {
  std::vector<double> centres;
  double cost = 0;  // up to a constant of the histogram
};

class Partition {
 public:
  explicit Partition(const Histogram& histogram) : weight_(kBins + 1), sum_(kBins + 1) {
    for (int i = 0; i < kBins; ++i) {
      weight_[i + 1] = weight_[i] + histogram.weight[i];
      sum_[i + 1] = sum_[i] + histogram.sum[i];
    }
  }

  /// Dynamic programming over the number of clusters: best[end] is the least cost of the bins [0, end) in `count`
  /// clusters, and the last cluster's begin grows with `end`, so that each layer takes O(bins log bins) by halving
  /// (Wu 1991; Wang and Song 2011).
  Clusters solve(int count) const {
    std::vector<double> best(kBins + 1), next(kBins + 1);
    std::vector<std::vector<uint16_t>> begins(count, std::vector<uint16_t>(kBins + 1));
    for (int end = 0; end <= kBins; ++end) best[end] = cost(0, end);
    for (int layer = 1; layer + 1 < count; ++layer) {
      extend(best, next, begins[layer], 0, kBins, 0, kBins);
      best.swap(next);
    }
    Clusters result;
    result.centres.assign(count, 1.0);
    int end = 0;
    result.cost = std::numeric_limits<double>::infinity();
    for (int begin = 0; begin <= kBins; ++begin) {
      // sum of w (x - 1)^2 without the sum of w x^2, which is the same for every partition
      const double pinned = weight(begin, kBins) - 2 * sum(begin, kBins);
      if (best[begin] + pinned < result.cost) {
        result.cost = best[begin] + pinned;
        end = begin;
      }
    }
    for (int layer = count - 2; layer >= 0; --layer) {
      const int begin = begins[layer][end];
      result.centres[layer] = centre(begin, end);
      end = begin;
    }
    return result;
  }

 private:
  double weight(int begin, int end) const { return weight_[end] - weight_[begin]; }
  double sum(int begin, int end) const { return sum_[end] - sum_[begin]; }

  /// Sum of w (x - centre)^2 less the sum of w x^2.
  double cost(int begin, int end) const {
    const double w = weight(begin, end);
    return w > 0 ? -sum(begin, end) * sum(begin, end) / w : 0;
  }

  /// The mean, or the middle of the bins where nothing lies.
  double centre(int begin, int end) const {
    const double w = weight(begin, end);
    const double mean = w > 0 ? sum(begin, end) / w : (begin + end) / double{kBins} - 1;
    return std::clamp(mean, begin * (2.0 / kBins) - 1, end * (2.0 / kBins) - 1);
  }

  void extend(const std::vector<double>& best, std::vector<double>& next, std::vector<uint16_t>& begins, int end_low,
              int end_high, int begin_low, int begin_high) const {
    if (end_low > end_high) return;
    const int end = (end_low + end_high) / 2;
    next[end] = std::numeric_limits<double>::infinity();
    for (int begin = begin_low; begin <= std::min(begin_high, end); ++begin) {
      const double candidate = best[begin] + cost(begin, end);
      if (candidate < next[end]) {
        next[end] = candidate;
        begins[end] = static_cast<uint16_t>(begin);
      }
    }
    extend(best, next, begins, end_low, end - 1, begin_low, begins[end]);
    extend(best, next, begins, end + 1, end_high, begins[end], begin_high);
  }

  std::vector<double> weight_, sum_;  // of the bins below
};

Histogram mirrored(const Histogram& histogram) {
  Histogram result;
  for (int i = 0; i < kBins; ++i) {
    result.weight[kBins - 1 - i] = histogram.weight[i];
    result.sum[kBins - 1 - i] = -histogram.sum[i];
  }
  return result;
}

void add_row(const void* weight, DType dtype, int64_t row, int64_t k, int64_t group, std::vector<float>& values,
             Histogram& histogram) {
  const auto* source = static_cast<const std::byte*>(weight) + static_cast<size_t>(row * k) * dtype_size(dtype);
  convert_to_f32(source, dtype, values.data(), static_cast<size_t>(k));
  for (int64_t begin = 0; begin < k; begin += group) {
    const int64_t end = std::min(begin + group, k);
    float absmax = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (!std::isfinite(values[i])) {
        fail(ErrorCode::kInvalidArgument, "row {}, column {}: expected a finite weight, found {}", row, i, values[i]);
      }
      absmax = std::max(absmax, std::abs(values[i]));
    }
    if (absmax == 0) continue;
    // An error of one step is worth absmax in the matrix, its square absmax^2.
    const double square = double{absmax} * absmax;
    for (int64_t i = begin; i < end; ++i) histogram.add(double{values[i]} / absmax, square);
  }
}

}  // namespace

Codebook fit_kmeans_codebook(const void* weight, DType dtype, int64_t n, int64_t k, int bits, int64_t group_size,
                             ThreadPool* threads) {
  check_shape(n, k, bits, group_size, "kmeans");
  // A fixed number of partial histograms, added in order: the sums do not depend on the threads.
  constexpr int64_t kParts = 16;
  std::vector<Histogram> parts(kParts);
  std::vector<std::exception_ptr> errors(kParts);
  parallel_for(threads, kParts, [&](int64_t part) {
    try {
      std::vector<float> values(static_cast<size_t>(k));
      const int64_t end = n * (part + 1) / kParts;
      for (int64_t row = n * part / kParts; row < end; ++row) {
        add_row(weight, dtype, row, k, group_size < 0 ? k : group_size, values, parts[part]);
      }
    } catch (...) {
      errors[part] = std::current_exception();
    }
  });
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  Histogram total;
  for (const Histogram& part : parts) {
    for (int i = 0; i < kBins; ++i) {
      total.weight[i] += part.weight[i];
      total.sum[i] += part.sum[i];
    }
  }

  // absmax is divided by the table's largest magnitude, so in units of absmax one end of any table is at -1 or +1.
  const Clusters upper = Partition(total).solve(1 << bits);
  const Clusters lower = Partition(mirrored(total)).solve(1 << bits);
  Codebook result;
  result.bits = bits;
  const bool use_upper = upper.cost <= lower.cost;
  for (const double centre : use_upper ? upper.centres : lower.centres) {
    result.values.push_back(static_cast<float>(use_upper ? centre : -centre));
  }
  std::sort(result.values.begin(), result.values.end());
  return result;
}

}  // namespace flute
