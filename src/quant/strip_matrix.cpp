#include "quant/strip_matrix.hpp"

#include <algorithm>
#include <cmath>
#include <exception>

#include "base/fail.hpp"

namespace flute {

StripContext strip_context(int64_t k, int64_t group_size, DType scale_dtype) {
  PackedView shape;  // for its arithmetic
  shape.k = k;
  shape.group_size = group_size;
  StripContext result;
  result.k = k;
  result.group = group_size < 0 ? k : std::min(group_size, k);
  result.groups = shape.groups();
  result.scale_dtype = scale_dtype;
  return result;
}

void check_calibrated(const Codebook& codebook, const CalibratedOptions& options, int64_t k) {
  validate(codebook, "codebook");
  if (codebook.rows != 1) {
    fail(ErrorCode::kInvalidArgument, "codebook: expected one table for the matrix, found {}", codebook.rows);
  }
  if (!(options.max_magnitude > 0) || !std::isfinite(options.max_magnitude)) {
    fail(ErrorCode::kInvalidArgument, "quantize: expected a codebook with a finite largest magnitude above 0, found {}",
         options.max_magnitude);
  }
  if (!(options.clip > 0 && options.clip <= 1)) {
    fail(ErrorCode::kInvalidArgument, "quantize: expected clip in (0, 1], found {}", options.clip);
  }
  allocate_packed(0, k, options.group_size, options.scale_dtype, codebook);  // checks the shape
}

PackedMatrix StripMatrix::pack(const Codebook& codebook, int64_t group_size) const {
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

void StripMatrix::unpack(const PackedView& packed) {
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

void StripMatrix::for_strips(const std::function<void(size_t)>& body) {
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

}  // namespace flute
