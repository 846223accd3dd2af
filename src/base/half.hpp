#pragma once
#include <bit>
#include <cstdint>

namespace flute {

// The conversions of dtype.hpp without a branch, so that loops over them become vector code.

/// yes where `condition` holds, else no; with masks, because a compiler that sees ?: moves the float operations behind
/// a branch and then cannot make vector code of the loop.
inline int32_t select(bool condition, int32_t yes, int32_t no) {
  const int32_t mask = -int32_t{condition};
  return (yes & mask) | (no & ~mask);
}

// Magnitudes are signed, since SSE4 and AVX2 compare no unsigned integers.

inline float f16_bits_to_f32(uint16_t bits) {
  const uint32_t sign = (uint32_t{bits} & 0x8000u) << 16;
  const int32_t magnitude = (bits & 0x7fff) << 13;
  // Exponent and mantissa 13 bits up give the value times 2^-112; one exact multiply mends that, subnormals too.
  const int32_t finite = std::bit_cast<int32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const int32_t result = select(magnitude >= 0x7c00 << 13, 0x7f800000 | magnitude, finite);
  return std::bit_cast<float>(sign | static_cast<uint32_t>(result));
}

inline uint16_t f32_to_f16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto magnitude = static_cast<int32_t>(bits & 0x7fffffffu);
  // From 2^-14 up: drop 13 bits, rounded to nearest even.
  const int32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below, in units of 2^-24: the addition of 1/2 leaves the rounded number of units in the low mantissa bits.
  const int32_t subnormal = std::bit_cast<int32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  int32_t result = select(magnitude < 0x38800000, subnormal, normal);
  result = select(magnitude >= 0x477ff000, 0x7c00, result);  // 65520 and more round to infinity
  result = select(magnitude > 0x7f800000, 0x7e00, result);
  return static_cast<uint16_t>(((bits >> 16) & 0x8000u) | static_cast<uint32_t>(result));
}

}  // namespace flute
