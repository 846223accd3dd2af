#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace flute {

/// Storage types of weights, scales and activations. The values are those of the C ABI's `flute_dtype`.
enum class DType : uint8_t { kF32 = 0, kF16 = 1, kBF16 = 2 };

/// Bytes of one element.
constexpr size_t dtype_size(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

/// "fp32", "fp16" or "bf16".
std::string_view dtype_name(DType dtype);

/// The inverse of dtype_name; throws kInvalidArgument on any other name.
DType dtype_from_name(std::string_view name);

/// bfloat16 bits -> float, exact.
inline float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

/// float -> bfloat16 bits, round to nearest even; NaN stays NaN.
inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// IEEE binary16 bits -> float, exact.
float f16_to_f32(uint16_t bits);

/// float -> IEEE binary16 bits, round to nearest even; overflow gives infinity, NaN stays NaN.
uint16_t f32_to_f16(float value);

/// Reads element `index` of a buffer of `dtype` as float. The buffer needs no alignment.
float load_as_f32(const void* data, DType dtype, size_t index);

/// Stores `value`, rounded to nearest even, as element `index` of a buffer of `dtype`. No alignment needed.
void store_from_f32(void* data, DType dtype, size_t index, float value);

/// `value` rounded to `dtype` and back: the `rn` of docs/format.md.
float round_to(DType dtype, float value);

/// Converts `count` elements (vectorised by the compiler where it can).
void convert_to_f32(const void* source, DType dtype, float* target, size_t count);
void convert_from_f32(const float* source, void* target, DType dtype, size_t count);

}  // namespace flute
