#include "flute/dtype.hpp"

#include <cstring>

#include "base/fail.hpp"

namespace flute {

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "fp32";
    case DType::kF16:
      return "fp16";
    case DType::kBF16:
      return "bf16";
  }
  return "?";
}

DType dtype_from_name(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  fail(ErrorCode::kInvalidArgument, "dtype: expected fp32, fp16 or bf16, found '{}'", name);
}

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Placing exponent and mantissa 13 bits up scales the value by 2^-112; one exact multiply mends that, subnormals too.
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f));
}

uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // >= 65520 rounds to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: a subnormal, in units of 2^-24
    // Adding 0.5 leaves round(value / 2^-24) in the low mantissa bits, rounded to nearest even by the addition.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

float load_as_f32(const void* data, DType dtype, size_t index) {
  const auto* bytes = static_cast<const std::byte*>(data) + index * dtype_size(dtype);
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

void store_from_f32(void* data, DType dtype, size_t index, float value) {
  auto* bytes = static_cast<std::byte*>(data) + index * dtype_size(dtype);
  if (dtype == DType::kF32) {
    std::memcpy(bytes, &value, sizeof value);
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
  std::memcpy(bytes, &bits, sizeof bits);
}

float round_to(DType dtype, float value) {
  switch (dtype) {
    case DType::kF16:
      return f16_to_f32(f32_to_f16(value));
    case DType::kBF16:
      return bf16_to_f32(f32_to_bf16(value));
    case DType::kF32:
      break;
  }
  return value;
}

void convert_to_f32(const void* source, DType dtype, float* target, size_t count) {
  if (dtype == DType::kF32) {
    std::memcpy(target, source, count * sizeof(float));
    return;
  }
  const auto* bytes = static_cast<const std::byte*>(source);
  const auto convert = [&](auto one) {
    for (size_t i = 0; i < count; ++i) {
      uint16_t bits;
      std::memcpy(&bits, bytes + 2 * i, sizeof bits);
      target[i] = one(bits);
    }
  };
  if (dtype == DType::kF16) {
    convert(f16_to_f32);
  } else {
    convert(bf16_to_f32);
  }
}

void convert_from_f32(const float* source, void* target, DType dtype, size_t count) {
  for (size_t i = 0; i < count; ++i) store_from_f32(target, dtype, i, source[i]);
}

}  // namespace flute
