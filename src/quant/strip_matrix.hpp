#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "flute/packed.hpp"
#include "flute/quantize.hpp"
#include "flute/threads.hpp"
#include "quant/strip.hpp"

namespace flute {

/// With neither moments nor factor. Throws kInvalidArgument where the group size is none.
StripContext strip_context(int64_t k, int64_t group_size, DType scale_dtype);

/// Throws kInvalidArgument where they do not suit a matrix of k columns.
void check_calibrated(const Codebook& codebook, const CalibratedOptions& options, int64_t k);

/// A matrix in strips, worked on side by side; sums over strips are taken in their order.
class StripMatrix {
 public:
  StripMatrix(const StripContext& context, const void* weight, DType dtype, int64_t n, ThreadPool* threads)
      : context_(context), n_(n), threads_(threads), strips_(static_cast<size_t>((n + kLanes - 1) / kLanes)) {
    for_strips([&](size_t i) { strips_[i].emplace(context, weight, dtype, n, static_cast<int64_t>(i) * kLanes); });
  }

  template <typename Body>
  void each(const Body& body) {
    for_strips([&](size_t i) { body(*strips_[i]); });
  }

  /// body(strip, sums) adds to sums[0 .. count), which begin at 0.
  template <typename Body>
  std::vector<double> sum(size_t count, const Body& body) {
    std::vector<std::vector<double>> parts(strips_.size(), std::vector<double>(count));
    for_strips([&](size_t i) { body(*strips_[i], std::span<double>(parts[i])); });
    std::vector<double> total(count);
    for (const std::vector<double>& part : parts) {
      for (size_t i = 0; i < count; ++i) total[i] += part[i];
    }
    return total;
  }

  PackedMatrix pack(const Codebook& codebook, int64_t group_size) const;
  void unpack(const PackedView& packed);

 private:
  /// The error of the first strip that has one is thrown, whichever thread meets one first.
  void for_strips(const std::function<void(size_t)>& body);

  const StripContext& context_;
  int64_t n_;
  ThreadPool* threads_;
  std::vector<std::optional<Strip>> strips_;
};

}  // namespace flute
