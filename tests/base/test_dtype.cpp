#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/seed.hpp"
#include "flute/dtype.hpp"
#include "flute/error.hpp"

namespace flute {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

// IEEE 754 by its definition, not by bit tricks.
float f16_reference(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const int mantissa = static_cast<int>(bits & 1023);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa != 0 ? std::nanf("") : static_cast<float>(sign) * kInf;
  const double significand = exponent == 0 ? mantissa : mantissa + 1024;
  return static_cast<float>(sign * std::ldexp(significand, std::max(exponent, 1) - 25));
}

TEST(Dtype, EveryHalfPrecisionNumberConvertsExactly) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float expected = f16_reference(bits);
    const float found = f16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(found)) << bits;
      ASSERT_TRUE(std::isnan(f16_to_f32(f32_to_f16(found)))) << bits;
    } else {
      ASSERT_EQ(bits_of(expected), bits_of(found)) << bits;
      ASSERT_EQ(bits, f32_to_f16(found));
    }
  }
}

// Between neighbours of a 16-bit format: the middle goes to the even one, its float neighbours to the near one.
template <typename ToFloat, typename FromFloat>
void expect_nearest_even(uint16_t largest, ToFloat to_float, FromFloat from_float) {
  for (uint32_t low = 0; low < largest; ++low) {
    const auto high = static_cast<uint16_t>(low + 1);
    const double middle = (double{to_float(static_cast<uint16_t>(low))} + double{to_float(high)}) / 2;
    const auto value = static_cast<float>(middle);
    ASSERT_EQ(double{value}, middle);
    ASSERT_EQ(from_float(value), low % 2 == 0 ? low : high) << low;
    ASSERT_EQ(from_float(-value), (low % 2 == 0 ? low : high) | 0x8000u) << low;
    ASSERT_EQ(from_float(std::nextafter(value, 0.0f)), low) << low;
    ASSERT_EQ(from_float(std::nextafter(value, kInf)), high) << low;
  }
}

TEST(Dtype, RoundsToNearestEven) {
  expect_nearest_even(0x7bff, f16_to_f32, f32_to_f16);
  // The middle of two bf16 subnormals is a float as long as bf16 has 8 bits less, so all of them are tested too.
  expect_nearest_even(0x7f7f, bf16_to_f32, f32_to_bf16);
}

TEST(Dtype, OverflowGivesInfinityAndNanStaysNan) {
  EXPECT_EQ(f32_to_f16(65519.996f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(-kInf), 0xfc00);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(f32_to_bf16(-kInf), 0xff80);
  for (const uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(std::bit_cast<float>(bits))))) << bits;
    EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(bits))))) << bits;
  }
}

// The bulk functions use vector code, the single ones do not; whoever mixes them must not see a difference.
TEST(Dtype, BulkConversionsAgreeWithSingleOnes) {
  auto random = fresh_random();
  for (const size_t count : {0, 1, 3, 15, 16, 17, 1000, 70000}) {
    std::vector<float> values(count);
    for (float& value : values) value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    for (size_t i = 0; i < count; i += 3) values[i] = std::ldexp(values[i], -100);  // more subnormals of f16
    for (size_t i = 1; i < count; i += 3) values[i] = std::normal_distribution<float>()(random);
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      // One element further in the buffer: nothing promises alignment.
      std::vector<std::byte> bulk((count + 1) * dtype_size(dtype)), single(bulk.size());
      convert_from_f32(values.data(), bulk.data() + 1, dtype, count);
      for (size_t i = 0; i < count; ++i) store_from_f32(single.data() + 1, dtype, i, values[i]);
      ASSERT_EQ(bulk, single) << dtype_name(dtype) << " " << count;
      std::vector<float> back(count);
      convert_to_f32(bulk.data() + 1, dtype, back.data(), count);
      for (size_t i = 0; i < count; ++i) {
        ASSERT_EQ(bits_of(back[i]), bits_of(load_as_f32(bulk.data() + 1, dtype, i))) << dtype_name(dtype) << " " << i;
        if (std::isnan(values[i])) continue;
        ASSERT_EQ(bits_of(back[i]), bits_of(round_to(dtype, values[i])));
      }
    }
  }
}

TEST(Dtype, NamesGoBothWays) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
  }
  try {
    dtype_from_name("float32");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "dtype: expected fp32, fp16 or bf16, found 'float32'");
  }
}

}  // namespace
}  // namespace flute
