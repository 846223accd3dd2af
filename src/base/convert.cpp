// The bulk conversions of dtype.hpp: plain loops, compiled once for each instruction set that Highway knows.
#include <cstring>

#include "base/half.hpp"
#include "flute/dtype.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "base/convert.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace flute {
namespace HWY_NAMESPACE {

template <typename Convert>
void widen(const std::byte* source, float* target, size_t count, Convert convert) {
  for (size_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, source + 2 * i, sizeof bits);
    target[i] = convert(bits);
  }
}

template <typename Convert>
void narrow(const float* source, std::byte* target, size_t count, Convert convert) {
  for (size_t i = 0; i < count; ++i) {
    const uint16_t bits = convert(source[i]);
    std::memcpy(target + 2 * i, &bits, sizeof bits);
  }
}

void f16_to_f32s(const std::byte* source, float* target, size_t count) {
  widen(source, target, count, [](uint16_t bits) { return f16_bits_to_f32(bits); });
}

void bf16_to_f32s(const std::byte* source, float* target, size_t count) {
  widen(source, target, count, [](uint16_t bits) { return bf16_to_f32(bits); });
}

void f32_to_f16s(const float* source, std::byte* target, size_t count) {
  narrow(source, target, count, [](float value) { return f32_to_f16_bits(value); });
}

void f32_to_bf16s(const float* source, std::byte* target, size_t count) {
  narrow(source, target, count, [](float value) { return f32_to_bf16(value); });
}

}  // namespace HWY_NAMESPACE
}  // namespace flute
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flute {

HWY_EXPORT(f16_to_f32s);
HWY_EXPORT(bf16_to_f32s);
HWY_EXPORT(f32_to_f16s);
HWY_EXPORT(f32_to_bf16s);

void convert_to_f32(const void* source, DType dtype, float* target, size_t count) {
  const auto* bytes = static_cast<const std::byte*>(source);
  switch (dtype) {
    case DType::kF32:
      if (count != 0) std::memcpy(target, bytes, count * sizeof(float));
      break;
    case DType::kF16:
      HWY_DYNAMIC_DISPATCH(f16_to_f32s)(bytes, target, count);
      break;
    case DType::kBF16:
      HWY_DYNAMIC_DISPATCH(bf16_to_f32s)(bytes, target, count);
      break;
  }
}

void convert_from_f32(const float* source, void* target, DType dtype, size_t count) {
  auto* bytes = static_cast<std::byte*>(target);
  switch (dtype) {
    case DType::kF32:
      if (count != 0) std::memcpy(bytes, source, count * sizeof(float));
      break;
    case DType::kF16:
      HWY_DYNAMIC_DISPATCH(f32_to_f16s)(source, bytes, count);
      break;
    case DType::kBF16:
      HWY_DYNAMIC_DISPATCH(f32_to_bf16s)(source, bytes, count);
      break;
  }
}

}  // namespace flute
#endif  // HWY_ONCE
