#include <algorithm>
#include <bit>
#include <cmath>
#include <exception>
#include <optional>

#include "base/fail.hpp"
#include "flute/quantize.hpp"
#include "flute/threads.hpp"
#include "format/shape.hpp"
#include "quant/nearest.hpp"

namespace flute {
namespace {

constexpr auto kInvalid = ErrorCode::kInvalidArgument;

void check(const Codebook& codebook, const RtnOptions& options, int64_t n) {
  validate(codebook, "codebook");
  if (codebook.rows != 1 && codebook.rows != n) {
    fail(kInvalid, "codebook: expected 1 or {} tables, found {}", n, codebook.rows);
  }
  if (!(options.max_magnitude > 0) || !std::isfinite(options.max_magnitude)) {
    fail(kInvalid, "quantize: expected a codebook with a finite largest magnitude above 0, found {}",
         options.max_magnitude);
  }
  if (!(options.clip > 0 && options.clip <= 1)) {
    fail(kInvalid, "quantize: expected clip in (0, 1], found {}", options.clip);
  }
}

[[noreturn]] void fail_not_finite(const float* values, int64_t row, int64_t first_column) {
  int64_t i = 0;
  while (std::isfinite(values[i])) ++i;
  fail(kInvalid, "row {}, column {}: expected a finite weight, found {}", row, first_column + i, values[i]);
}

}  // namespace

PackedMatrix allocate_packed(int64_t n, int64_t k, int64_t group_size, DType scale_dtype, const Codebook& codebook) {
  PackedMatrix result;
  result.n = n;
  result.k = k;
  result.bits = codebook.bits;
  result.group_size = group_size;
  result.scale_dtype = scale_dtype;
  result.codebook = codebook.values;
  check_shape(n, k, codebook.bits, group_size, "quantize");
  const PackedView shape = result.view();
  result.codes.resize(static_cast<size_t>(n * shape.words_per_row()));
  result.scales.resize(static_cast<size_t>(n * shape.groups()) * dtype_size(scale_dtype));
  return result;
}

void quantize_rtn_rows(const void* weight, DType dtype, int64_t row_begin, int64_t row_end, const Codebook& codebook,
                       const RtnOptions& options, PackedMatrix& target, int64_t first_row) {
  check(codebook, options, target.n);
  if (first_row < 0 || row_begin < first_row || row_end < row_begin || row_end - first_row > target.n) {
    fail(kInvalid, "quantize: expected rows within {}..{}, found {}..{}", first_row, first_row + target.n, row_begin,
         row_end);
  }
  if (target.bits != codebook.bits || target.group_size != options.group_size ||
      target.scale_dtype != options.scale_dtype) {
    fail(kInvalid, "quantize: expected a target allocated for the same codebook and options");
  }
  validate(target.view(), "quantize", false);
  const int64_t k = target.k;
  const int64_t group = target.group_size < 0 ? k : target.group_size;
  const int64_t groups = target.view().groups();
  const int64_t words = target.view().words_per_row();
  const size_t length = size_t{1} << codebook.bits;
  std::vector<float> values(static_cast<size_t>(k));
  std::vector<uint8_t> codes(static_cast<size_t>(k));
  std::optional<NearestTable> table;

  for (int64_t row = row_begin; row < row_end; ++row) {
    if (!table || codebook.rows > 1) {
      const size_t offset = codebook.rows > 1 ? static_cast<size_t>(row - first_row) * length : 0;
      table.emplace(std::span(codebook.values).subspan(offset, length));
    }
    const auto* source = static_cast<const std::byte*>(weight) + static_cast<size_t>(row * k) * dtype_size(dtype);
    convert_to_f32(source, dtype, values.data(), static_cast<size_t>(k));
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * group;
      const auto size = static_cast<size_t>(std::min(group, k - begin));
      float* const in_group = values.data() + begin;
      const uint32_t largest = absmax_bits(in_group, size);
      if (largest >= 0x7f800000u) fail_not_finite(in_group, row, begin);
      const float absmax = std::bit_cast<float>(largest);
      const float scale = round_to(options.scale_dtype, absmax * options.clip / options.max_magnitude);
      if (!std::isfinite(scale)) {
        fail(kInvalid, "row {}, group {}: the scale {} / {} overflows {}", row, g, absmax * options.clip,
             options.max_magnitude, dtype_name(options.scale_dtype));
      }
      store_from_f32(target.scales.data(), options.scale_dtype, static_cast<size_t>((row - first_row) * groups + g),
                     scale);
      if (scale == 0) std::fill_n(in_group, size, 0.0f);
      nearest_codes(*table, in_group, scale == 0 ? 1.0f : scale, size, codes.data() + begin);
    }
    pack_codes(codes, codebook.bits, std::span(target.codes).subspan((row - first_row) * words, words));
  }
}

PackedMatrix quantize_rtn(const void* weight, DType dtype, int64_t n, int64_t k, const Codebook& codebook,
                          const RtnOptions& options, ThreadPool* threads) {
  check(codebook, options, n);
  PackedMatrix result = allocate_packed(n, k, options.group_size, options.scale_dtype, codebook);
  // About 64K weights a block; the error reported is that of the first row, whichever thread meets one first.
  const int64_t rows = std::max<int64_t>(1, 65536 / k);
  const int64_t blocks = (n + rows - 1) / rows;
  std::vector<std::exception_ptr> errors(static_cast<size_t>(blocks));
  parallel_for(threads, blocks, [&](int64_t block) {
    try {
      const int64_t begin = block * rows;
      quantize_rtn_rows(weight, dtype, begin, std::min(begin + rows, n), codebook, options, result);
    } catch (...) {
      errors[static_cast<size_t>(block)] = std::current_exception();
    }
  });
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return result;
}

}  // namespace flute
