#include "flute/packed.hpp"

#include <algorithm>
#include <cmath>

#include "base/checked.hpp"
#include "base/fail.hpp"
#include "format/shape.hpp"

namespace flute {
namespace {

constexpr auto kInvalid = ErrorCode::kInvalidArgument;

bool is_group_size(int64_t group_size) {
  return group_size == -1 || group_size == 32 || group_size == 64 || group_size == 128 || group_size == 256;
}

void expect_finite(const void* values, DType dtype, int64_t rows, int64_t groups, std::string_view what,
                   std::string_view name) {
  for (int64_t i = 0; i < rows * groups; ++i) {
    const float value = load_as_f32(values, dtype, static_cast<size_t>(i));
    if (!std::isfinite(value)) {
      fail(kInvalid, "{}: {} of row {}, group {}: expected a finite value, found {}", what, name, i / groups,
           i % groups, value);
    }
  }
}

bool is_aligned(const void* pointer, size_t alignment) { return reinterpret_cast<uintptr_t>(pointer) % alignment == 0; }

}  // namespace

size_t PackedView::bytes() const {
  const size_t scale_bytes = static_cast<size_t>(n * groups()) * dtype_size(scale_dtype);
  return codes.size_bytes() + scale_bytes * (offsets == nullptr ? 1 : 2) + codebook.size_bytes();
}

void check_shape(int64_t n, int64_t k, int bits, int64_t group_size, std::string_view what) {
  if (bits < 1 || bits > 8) fail(kInvalid, "{}: expected bits 1..8, found {}", what, bits);
  if (!is_group_size(group_size)) {
    fail(kInvalid, "{}: expected group size 32, 64, 128, 256 or -1, found {}", what, group_size);
  }
  if (n < 0) fail(kInvalid, "{}: expected N >= 0, found {}", what, n);
  if (k < 32 || k % 32 != 0) fail(kInvalid, "{}: expected K to be a positive multiple of 32, found {}", what, k);
  if (!checked_mul(n, k)) fail(kInvalid, "{}: expected N x K below 2^63, found {} x {}", what, n, k);
}

void validate(const PackedView& matrix, std::string_view what, bool check_values) {
  check_shape(matrix.n, matrix.k, matrix.bits, matrix.group_size, what);
  const int64_t words = matrix.n * matrix.words_per_row();  // <= n * k / 4
  if (matrix.codes.size() != static_cast<size_t>(words)) {
    fail(kInvalid, "{}: codes: expected {} x {} words, found {}", what, matrix.n, matrix.words_per_row(),
         matrix.codes.size());
  }
  const size_t length = size_t{1} << matrix.bits;
  const size_t found = matrix.codebook.size();
  if (found != length && (found % length != 0 || found / length != static_cast<size_t>(matrix.n))) {
    fail(kInvalid, "{}: codebook: expected {} values, or {} x {}, found {}", what, length, matrix.n, length, found);
  }
  if (matrix.scale_dtype > DType::kBF16) {
    fail(kInvalid, "{}: expected scales of fp32, fp16 or bf16, found dtype {}", what,
         static_cast<int>(matrix.scale_dtype));
  }
  if (matrix.scales == nullptr && matrix.n > 0) fail(kInvalid, "{}: expected scales, found none", what);
  const size_t alignment = dtype_size(matrix.scale_dtype);
  if (!is_aligned(matrix.codes.data(), alignof(uint32_t)) || !is_aligned(matrix.codebook.data(), alignof(float)) ||
      !is_aligned(matrix.scales, alignment) || !is_aligned(matrix.offsets, alignment)) {
    fail(kInvalid, "{}: expected buffers aligned to their elements, found one that is not", what);
  }

  if (!check_values) return;
  for (size_t i = 0; i < found; ++i) {
    if (!std::isfinite(matrix.codebook[i])) {
      fail(kInvalid, "{}: codebook: row {}, code {}: expected a finite value, found {}", what, i / length, i % length,
           matrix.codebook[i]);
    }
  }
  expect_finite(matrix.scales, matrix.scale_dtype, matrix.n, matrix.groups(), what, "scale");
  if (matrix.offsets != nullptr) {
    expect_finite(matrix.offsets, matrix.scale_dtype, matrix.n, matrix.groups(), what, "offset");
  }
}

PackedView PackedMatrix::view() const {
  PackedView result;
  result.n = n;
  result.k = k;
  result.bits = bits;
  result.group_size = group_size;
  result.codes = codes;
  result.scale_dtype = scale_dtype;
  result.scales = scales.data();
  result.offsets = offsets.empty() ? nullptr : offsets.data();
  result.codebook = codebook;
  return result;
}

void dequantize_rows(const PackedView& matrix, int64_t row_begin, int64_t row_end, DType out_dtype, void* out) {
  if (row_begin < 0 || row_end < row_begin || row_end > matrix.n) {
    fail(kInvalid, "dequantize: expected rows within 0..{}, found {}..{}", matrix.n, row_begin, row_end);
  }
  const int64_t k = matrix.k;
  const int64_t group = matrix.group_size < 0 ? k : matrix.group_size;
  const int64_t groups = matrix.groups();
  const size_t length = size_t{1} << matrix.bits;
  std::vector<float> table(length);
  std::vector<uint8_t> codes(static_cast<size_t>(k));
  std::vector<float> values(static_cast<size_t>(k));

  for (int64_t row = row_begin; row < row_end; ++row) {
    if (row == row_begin || matrix.per_row_codebook()) {
      const float* source = matrix.codebook.data() + (matrix.per_row_codebook() ? row * length : 0);
      for (size_t code = 0; code < length; ++code) table[code] = round_to(out_dtype, source[code]);
    }
    unpack_codes(matrix.codes.subspan(row * matrix.words_per_row(), matrix.words_per_row()), matrix.bits, codes);
    for (int64_t g = 0; g < groups; ++g) {
      const size_t index = static_cast<size_t>(row * groups + g);
      const float scale = round_to(out_dtype, load_as_f32(matrix.scales, matrix.scale_dtype, index));
      const int64_t begin = g * group;
      const int64_t end = std::min(begin + group, k);
      for (int64_t i = begin; i < end; ++i) values[i] = table[codes[i]] * scale;
      if (matrix.offsets != nullptr) {
        const float offset = round_to(out_dtype, load_as_f32(matrix.offsets, matrix.scale_dtype, index));
        for (int64_t i = begin; i < end; ++i) values[i] = round_to(out_dtype, values[i]) + offset;
      }
    }
    auto* target = static_cast<std::byte*>(out) + static_cast<size_t>((row - row_begin) * k) * dtype_size(out_dtype);
    convert_from_f32(values.data(), target, out_dtype, static_cast<size_t>(k));
  }
}

}  // namespace flute
