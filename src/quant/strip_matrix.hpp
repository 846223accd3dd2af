#pragma once
#include <cstddef>
#include <cstdint>
#include <exception>
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

  PackedMatrix pack(const Codebook& codebook, int64_t group_size) const {
    PackedMatrix result = allocate_packed(n_, context_.k, group_size, context_.scale_dtype, codebook);
    const int64_t words = result.view().words_per_row();
    std::vector<uint8_t> codes(static_cast<size_t>(context_.k));
    for (int64_t row = 0; row < n_; ++row) {
      const Strip& strip = *strips_[static_cast<size_t>(row / kLanes)];
      for (int64_t j = 0; j < context_.k; ++j) codes[static_cast<size_t>(j)] = strip.code(j, row % kLanes);
      pack_codes(codes, codebook.bits, std::span(result.codes).subspan(row * words, words));
      for (int64_t g = 0; g < context_.groups; ++g) {
        store_from_f32(result.scales.data(), context_.scale_dtype, static_cast<size_t>(row * context_.groups + g),
                       strip.scale(g, row % kLanes));
      }
    }
    return result;
  }

  void unpack(const PackedView& packed) {
    std::vector<uint8_t> codes(static_cast<size_t>(context_.k));
    const int64_t words = packed.words_per_row();
    for (int64_t row = 0; row < n_; ++row) {
      Strip& strip = *strips_[static_cast<size_t>(row / kLanes)];
      unpack_codes(packed.codes.subspan(static_cast<size_t>(row * words), static_cast<size_t>(words)), packed.bits,
                   codes);
      for (int64_t j = 0; j < context_.k; ++j) strip.set(j, row % kLanes, codes[static_cast<size_t>(j)]);
      for (int64_t g = 0; g < context_.groups; ++g) {
        strip.set_scale(g, row % kLanes,
                        load_as_f32(packed.scales, packed.scale_dtype, static_cast<size_t>(row * context_.groups + g)));
      }
    }
  }

 private:
  /// The error of the first strip that has one is thrown, whichever thread meets one first.
  void for_strips(const std::function<void(size_t)>& body) {
    std::vector<std::exception_ptr> errors(strips_.size());
    parallel_for(threads_, static_cast<int64_t>(strips_.size()), [&](int64_t i) {
      try {
        body(static_cast<size_t>(i));
      } catch (...) {
        errors[static_cast<size_t>(i)] = std::current_exception();
      }
    });
    for (const std::exception_ptr& error : errors) {
      if (error) std::rethrow_exception(error);
    }
  }

  const StripContext& context_;
  int64_t n_;
  ThreadPool* threads_;
  std::vector<std::optional<Strip>> strips_;
};

}  // namespace flute
