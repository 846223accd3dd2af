#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "flute/codebook.hpp"
#include "flute/dtype.hpp"

namespace flute {

/// A quantized matrix in the packed (storage) layout, not owned: what `P.weight_packed`, `P.weight_scale`,
/// `P.weight_codebook` and `P.weight_offset` of a checkpoint hold (docs/format.md).
/// W[n,k] = codebook[code[n,k]] * scale[n, k / group] (+ offset[n, k / group]).
/// All pointers are aligned to their element.
struct PackedView {
  int64_t n = 0;                    ///< output features
  int64_t k = 0;                    ///< input features, a multiple of 32
  int bits = 4;                     ///< 1..8
  int64_t group_size = 64;          ///< 32, 64, 128, 256, or -1: one scale per output feature
  std::span<const uint32_t> codes;  ///< [n, k*bits/32]: code j of a row in bits [j*bits, (j+1)*bits) of its bit stream
  DType scale_dtype = DType::kF16;  ///< of scales and offsets
  const void* scales = nullptr;     ///< [n, groups()]
  const void* offsets = nullptr;    ///< [n, groups()], or null
  std::span<const float> codebook;  ///< [2^bits] or [n, 2^bits]

  /// ceil(k / group_size), or 1 for group_size -1.
  int64_t groups() const { return group_size < 0 ? 1 : (k + group_size - 1) / group_size; }
  int64_t words_per_row() const { return k / 32 * bits; }
  bool per_row_codebook() const { return codebook.size() != (size_t{1} << bits); }
  /// Bytes of codes, scales, offsets and codebook together.
  size_t bytes() const;
};

/// Throws kInvalidArgument unless every field and size is as documented above (checked arithmetic; finite codebook
/// and scales are checked too when `check_values`). `what` starts the message.
void validate(const PackedView& matrix, std::string_view what, bool check_values = true);

/// The same, owned.
struct PackedMatrix {
  int64_t n = 0, k = 0;
  int bits = 4;
  int64_t group_size = 64;
  std::vector<uint32_t> codes;
  DType scale_dtype = DType::kF16;
  std::vector<std::byte> scales;
  std::vector<std::byte> offsets;  ///< empty: none
  std::vector<float> codebook;
  PackedView view() const;
};

/// Packs `codes[count]` (each < 2^bits) into `count*bits/32` words; count must be a multiple of 32. bits 1..8.
void pack_codes(std::span<const uint8_t> codes, int bits, std::span<uint32_t> words);

/// The inverse of pack_codes.
void unpack_codes(std::span<const uint32_t> words, int bits, std::span<uint8_t> codes);

/// Writes rows [row_begin, row_end) of the dequantized matrix to `out` ([row_end-row_begin, k], dtype `out_dtype`):
/// rn(rn(codebook)*rn(scale)) (+ rn(offset), one more rounding), rn being rounding to `out_dtype`.
void dequantize_rows(const PackedView& matrix, int64_t row_begin, int64_t row_end, DType out_dtype, void* out);

}  // namespace flute
