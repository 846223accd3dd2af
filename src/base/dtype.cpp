#include "flute/dtype.hpp"

#include <cstring>

#include "base/fail.hpp"
#include "base/half.hpp"

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

float f16_to_f32(uint16_t bits) { return f16_bits_to_f32(bits); }

uint16_t f32_to_f16(float value) { return f32_to_f16_bits(value); }

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

}  // namespace flute
