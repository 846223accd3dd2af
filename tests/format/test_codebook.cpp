#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "flute/codebook.hpp"
#include "flute/error.hpp"

namespace flute {
namespace {

std::string message(const std::function<void()>& call, ErrorCode code) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    return error.what();
  }
  return "no error";
}

// Dettmers et al. 2023, appendix E, as the decimal numbers printed there.
TEST(NormalFloat, FourBitsAreThePublishedValues) {
  const std::vector<float> published = {
      -1.0f,
      -0.6961928009986877f,
      -0.5250730514526367f,
      -0.39491748809814453f,
      -0.28444138169288635f,
      -0.18477343022823334f,
      -0.09105003625154495f,
      0.0f,
      0.07958029955625534f,
      0.16093020141124725f,
      0.24611230194568634f,
      0.33791524171829224f,
      0.44070982933044434f,
      0.5626170039176941f,
      0.7229568362236023f,
      1.0f,
  };
  EXPECT_EQ(nf_codebook(4).values, published);
}

// Quantiles computed by Python's statistics.NormalDist().inv_cdf (Wichura's AS241) in double precision.
TEST(NormalFloat, OtherWidthsAreQuantiles) {
  EXPECT_EQ(nf_codebook(2).values, (std::vector<float>{-1.0f, 0.0f, 0.33791513671312795f, 1.0f}));
  EXPECT_EQ(nf_codebook(3).values,
            (std::vector<float>{-1.0f, -0.47862908531009651f, -0.21714178000118009f, 0.0f, 0.16093014438029077f,
                                0.33791513671312795f, 0.56261688796998499f, 1.0f}));
}

TEST(NormalFloat, EveryWidthAscendsFromMinusOneThroughZeroToOne) {
  for (int bits = 2; bits <= 8; ++bits) {
    const Codebook codebook = nf_codebook(bits);
    validate(codebook, "nf");
    const auto& values = codebook.values;
    ASSERT_EQ(values.size(), size_t{1} << bits);
    EXPECT_EQ(values.front(), -1.0f);
    EXPECT_EQ(values[(size_t{1} << (bits - 1)) - 1], 0.0f);
    EXPECT_EQ(values.back(), 1.0f);
    EXPECT_TRUE(std::is_sorted(values.begin(), values.end(), std::less_equal<>())) << bits;
    EXPECT_EQ(codebook_max_magnitude(codebook, false), 1.0f);
  }
}

TEST(Integers, AscendAndScaleByTheLargestPositive) {
  EXPECT_EQ(int_codebook(3).values, (std::vector<float>{-4, -3, -2, -1, 0, 1, 2, 3}));
  EXPECT_EQ(codebook_max_magnitude(int_codebook(3), true), 3.0f);
  EXPECT_EQ(codebook_max_magnitude(int_codebook(8), true), 127.0f);
  EXPECT_EQ(codebook_max_magnitude(int_codebook(8), false), 128.0f);
}

std::vector<float> positive_half(int bits, std::string_view variant = "") {
  auto values = fp_codebook(bits, variant).values;
  const size_t half = values.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    EXPECT_EQ(values[half + i], -values[i]);
    EXPECT_TRUE(std::signbit(values[half + i]));
  }
  values.resize(half);
  return values;
}

TEST(SmallFloats, AreInCodeOrder) {
  EXPECT_EQ(positive_half(3), (std::vector<float>{0, 1, 2, 3}));
  EXPECT_EQ(positive_half(4), (std::vector<float>{0, 0.5, 1, 1.5, 2, 3, 4, 6}));  // OCP MX, table 5
  EXPECT_EQ(positive_half(6).back(), 7.5f);                                       // OCP MX, table 4
  EXPECT_EQ(positive_half(6)[1], 0.125f);
  EXPECT_EQ(positive_half(6, "e3m2").back(), 28.0f);
  EXPECT_EQ(positive_half(6, "e3m2")[1], 0.0625f);
  const auto e4m3 = positive_half(8);  // OCP OFP8, table 1
  EXPECT_EQ(e4m3[1], 0x1p-9f);
  EXPECT_EQ(e4m3[8], 0x1p-6f);
  EXPECT_EQ(e4m3[126], 448.0f);
  EXPECT_EQ(e4m3[127], 448.0f);  // NaN in OFP8: a table holds numbers only
  for (int bits = 3; bits <= 8; ++bits) validate(fp_codebook(bits), "fp");
}

TEST(NamedCodebook, FindsEachName) {
  EXPECT_EQ(named_codebook("nf", 3).values, nf_codebook(3).values);
  EXPECT_EQ(named_codebook("int", 5).values, int_codebook(5).values);
  EXPECT_EQ(named_codebook("fp", 6).values, fp_codebook(6, "e2m3").values);
  EXPECT_EQ(named_codebook("e3m2", 6).values, fp_codebook(6, "e3m2").values);
  const auto invalid = [](std::string_view name, int bits) {
    return message([=] { named_codebook(name, bits); }, ErrorCode::kInvalidArgument);
  };
  EXPECT_EQ(invalid("nf", 9), "nf codebook: expected bits 2..8, found 9");
  EXPECT_EQ(invalid("int", 1), "int codebook: expected bits 2..8, found 1");
  EXPECT_EQ(invalid("fp", 2), "fp codebook: expected bits 3..8, found 2");
  EXPECT_EQ(invalid("e3m2", 4), "fp codebook: expected a format of 4 bits, found 'e3m2'");
  EXPECT_EQ(invalid("nf4", 4),
            "codebook: expected one of nf, int, fp, e1m1, e2m1, e2m2, e2m3, e3m2, e3m3, e4m3, found 'nf4'");
}

TEST(ValidateCodebook, NamesWhatIsWrong) {
  const auto invalid = [](int bits, int64_t rows, int width, std::vector<float> values,
                          ErrorCode code = ErrorCode::kInvalidFormat) {
    const Codebook codebook{bits, rows, width, std::move(values)};
    return message([&] { validate(codebook, "table.json"); }, code);
  };
  EXPECT_EQ(invalid(2, 1, 1, {1, 2, 3, 4}, ErrorCode::kInternal), "no error");
  EXPECT_EQ(invalid(2, 2, 1, std::vector<float>(8), ErrorCode::kInternal), "no error");
  EXPECT_EQ(invalid(2, 1, 1, {1, 2, 3}), "table.json: expected 1 x 4 values, found 3");
  EXPECT_EQ(invalid(2, 1, 1, {}), "table.json: expected 1 x 4 values, found 0");
  EXPECT_EQ(invalid(2, 3, 1, std::vector<float>(8)), "table.json: expected 3 x 4 values, found 8");
  EXPECT_EQ(invalid(2, std::numeric_limits<int64_t>::max(), 1, std::vector<float>(4)),
            "table.json: expected 9223372036854775807 x 4 values, found 4");
  EXPECT_EQ(invalid(0, 1, 1, {1}), "table.json: expected bits 1..8, found 0");
  EXPECT_EQ(invalid(64, 1, 1, {1}), "table.json: expected bits 1..8, found 64");
  EXPECT_EQ(invalid(1, 2, 1, {1, 2, 3, std::numeric_limits<float>::infinity()}),
            "table.json: row 1, code 1: expected a finite value, found inf");
  EXPECT_EQ(invalid(2, 1, 2, std::vector<float>(32), ErrorCode::kUnsupported),
            "table.json: expected one weight a code, found a vector codebook of width 2");
  EXPECT_EQ(invalid(2, 1, 0, {}), "table.json: expected vector width 1 or 2, found 0");
}

}  // namespace
}  // namespace flute
