#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "base/seed.hpp"
#include "flute/error.hpp"
#include "flute/packed.hpp"
#include "random_packed.hpp"

namespace flute {
namespace {

// The definition, one weight at a time.
float dequantized(const PackedView& matrix, int64_t row, int64_t column, DType out) {
  const int64_t first = column * matrix.bits;
  uint32_t code = 0;
  for (int bit = 0; bit < matrix.bits; ++bit) {
    const uint32_t word = matrix.codes[row * matrix.words_per_row() + (first + bit) / 32];
    code |= (word >> (first + bit) % 32 & 1u) << bit;
  }
  const int64_t group = matrix.group_size < 0 ? 0 : column / matrix.group_size;
  const auto index = static_cast<size_t>(row * matrix.groups() + group);
  const int64_t table = matrix.per_row_codebook() ? row << matrix.bits : 0;
  const float value = round_to(out, matrix.codebook[table + code]);
  float result = round_to(out, value * round_to(out, load_as_f32(matrix.scales, matrix.scale_dtype, index)));
  if (matrix.offsets != nullptr) {
    const float offset = round_to(out, load_as_f32(matrix.offsets, matrix.scale_dtype, index));
    result = round_to(out, result + offset);
  }
  return result;
}

TEST(Dequantize, FollowsTheDefinitionBitForBit) {
  auto random = fresh_random();
  for (int draw = 0; draw < 200; ++draw) {
    const auto pick = [&](std::initializer_list<int64_t> from) {
      return from.begin()[random_between(random, 0, static_cast<int64_t>(from.size()) - 1)];
    };
    const int64_t n = random_between(random, 1, 9);
    PackedDraw format;
    format.k = 32 * random_between(random, 1, 20);
    format.bits = static_cast<int>(random_between(random, 1, 8));
    format.group_size = pick({32, 64, 128, 256, -1});
    format.scale_dtype = static_cast<DType>(pick({0, 1, 2}));
    format.per_row = pick({0, 1}) == 1 && n > 1;
    format.offsets = pick({0, 1}) == 1;
    const auto out = static_cast<DType>(pick({0, 1, 2}));
    const PackedMatrix matrix = random_ordinary(random, format, n);
    validate(matrix.view(), "matrix");

    const int64_t begin = random_between(random, 0, n);
    const int64_t end = random_between(random, begin, n);
    std::vector<std::byte> rows(static_cast<size_t>((end - begin) * format.k) * dtype_size(out));
    dequantize_rows(matrix.view(), begin, end, out, rows.data());
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t column = 0; column < format.k; ++column) {
        const float found = load_as_f32(rows.data(), out, static_cast<size_t>((row - begin) * format.k + column));
        ASSERT_EQ(found, dequantized(matrix.view(), row, column, out))
            << "draw " << draw << ", " << format.bits << " bits, group " << format.group_size << ", row " << row
            << ", column " << column;
      }
    }
  }
}

TEST(Dequantize, RefusesRowsOutsideTheMatrix) {
  auto random = fresh_random();
  const PackedMatrix matrix = random_ordinary(random, {}, 4);
  float out[4 * 64];
  for (const auto& [begin, end] : {std::pair{-1, 1}, {2, 1}, {4, 5}}) {
    EXPECT_THROW(dequantize_rows(matrix.view(), begin, end, DType::kF32, out), Error);
  }
}

TEST(PackedView, CountsItsBytes) {
  auto random = fresh_random();
  // K = 96 at group 64: two groups, the second one short.
  const PackedMatrix matrix = random_ordinary(
      random, {.k = 96, .bits = 3, .group_size = 64, .scale_dtype = DType::kBF16, .per_row = true, .offsets = true}, 2);
  EXPECT_EQ(matrix.view().groups(), 2);
  EXPECT_EQ(matrix.view().words_per_row(), 9);
  EXPECT_EQ(matrix.view().bytes(), 2u * 9 * 4 + 2u * 2 * 2 * 2 + 2u * 8 * 4);
}

TEST(PackedView, ValidationNamesWhatIsWrong) {
  auto random = fresh_random();
  const PackedMatrix matrix = random_ordinary(
      random, {.k = 64, .bits = 2, .group_size = 32, .scale_dtype = DType::kF32, .per_row = true, .offsets = true}, 2);
  const auto message = [&](const std::function<void(PackedView&)>& spoil) -> std::string {
    PackedView view = matrix.view();
    spoil(view);
    try {
      validate(view, "a.weight");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return error.what();
    }
    return "no error";
  };
  using View = PackedView;
  EXPECT_EQ(message([](View&) {}), "no error");
  EXPECT_EQ(message([](View& v) { v.bits = 0; }), "a.weight: expected bits 1..8, found 0");
  EXPECT_EQ(message([](View& v) { v.group_size = 48; }),
            "a.weight: expected group size 32, 64, 128, 256 or -1, found 48");
  EXPECT_EQ(message([](View& v) { v.group_size = 0; }),
            "a.weight: expected group size 32, 64, 128, 256 or -1, found 0");
  EXPECT_EQ(message([](View& v) { v.n = -2; }), "a.weight: expected N >= 0, found -2");
  EXPECT_EQ(message([](View& v) { v.k = 48; }), "a.weight: expected K to be a positive multiple of 32, found 48");
  EXPECT_EQ(message([](View& v) { v.k = 0; }), "a.weight: expected K to be a positive multiple of 32, found 0");
  EXPECT_EQ(message([](View& v) { v.n = v.k = int64_t{1} << 40; }),
            "a.weight: expected N x K below 2^63, found 1099511627776 x 1099511627776");
  EXPECT_EQ(message([](View& v) { v.n = 3; }), "a.weight: codes: expected 3 x 4 words, found 8");
  EXPECT_EQ(message([](View& v) { v.codebook = v.codebook.first(7); }),
            "a.weight: codebook: expected 4 values, or 2 x 4, found 7");
  EXPECT_EQ(message([](View& v) { v.codebook = {}; }), "a.weight: codebook: expected 4 values, or 2 x 4, found 0");
  EXPECT_EQ(message([](View& v) { v.scales = nullptr; }), "a.weight: expected scales, found none");
  EXPECT_EQ(message([](View& v) { v.scale_dtype = static_cast<DType>(3); }),
            "a.weight: expected scales of fp32, fp16 or bf16, found dtype 3");
  EXPECT_EQ(message([](View& v) { v.scales = static_cast<const std::byte*>(v.scales) + 2; }),
            "a.weight: expected buffers aligned to their elements, found one that is not");
  const float bad[] = {1, 2, std::numeric_limits<float>::infinity(), std::nanf("")};
  EXPECT_EQ(message([&](View& v) { v.scales = bad; }),
            "a.weight: scale of row 1, group 0: expected a finite value, found inf");
  EXPECT_EQ(message([&](View& v) { v.offsets = bad; }),
            "a.weight: offset of row 1, group 0: expected a finite value, found inf");
  EXPECT_EQ(message([&](View& v) { v.codebook = bad; }),
            "a.weight: codebook: row 0, code 2: expected a finite value, found inf");
}

}  // namespace
}  // namespace flute
