#pragma once
#include <bit>
#include <cstdint>

namespace flute {

// The conversions of dtype.hpp without a branch, so that loops over them become vector code.

inline float f16_bits_to_f32(uint16_t bits) {
  const uint32_t sign = (uint32_t{bits} & 0x8000u) << 16;
  const uint32_t magnitude = (uint32_t{bits} & 0x7fffu) << 13;
  // Exponent and mantissa 13 bits up give the value times 2^-112; one exact multiply mends that, subnormals too.
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  return std::bit_cast<float>(sign | (magnitude >= 0x7c00u << 13 ? 0x7f800000u | magnitude : finite));
}

inline uint16_t f32_to_f16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // From 2^-14 up: drop 13 bits, rounded to nearest even.
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  // Below, in units of 2^-24: the addition of 1/2 leaves the rounded number of units in the low mantissa bits.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;  // 65520 and more round to infinity
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return static_cast<uint16_t>(((bits >> 16) & 0x8000u) | result);
}

}  // namespace flute
