#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/seed.hpp"
#include "flute/error.hpp"
#include "flute/quantize.hpp"
#include "flute/threads.hpp"
#include "quant/problem.hpp"

namespace flute {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// docs/format.md, "nearest value", by looking at every value: less than half way to any other counts.
int nearest_code(const std::vector<float>& table, float t) {
  int best = 0;
  for (int code = 1; code < static_cast<int>(table.size()); ++code) {
    const double a = table[best], b = table[code];
    const double middle = (a + b) / 2;
    if (a < b ? t > middle : a > b ? t < middle : false) best = code;  // ties stay with the lower code
  }
  return best;
}

std::vector<uint8_t> codes_of(const PackedMatrix& matrix) {
  std::vector<uint8_t> codes(static_cast<size_t>(matrix.n * matrix.k));
  unpack_codes(matrix.codes, matrix.bits, codes);
  return codes;
}

void expect_rtn(const std::vector<float>& weight, int64_t n, int64_t k, const Codebook& codebook,
                const RtnOptions& options, const PackedMatrix& matrix) {
  const int64_t group = options.group_size < 0 ? k : options.group_size;
  const int64_t groups = (k + group - 1) / group;
  const size_t length = size_t{1} << codebook.bits;
  const std::vector<uint8_t> codes = codes_of(matrix);
  for (int64_t row = 0; row < n; ++row) {
    const size_t offset = codebook.rows > 1 ? static_cast<size_t>(row) * length : 0;
    const std::vector<float> table(codebook.values.begin() + offset, codebook.values.begin() + offset + length);
    for (int64_t g = 0; g < groups; ++g) {
      float absmax = 0;
      const int64_t end = std::min((g + 1) * group, k);
      for (int64_t i = g * group; i < end; ++i) absmax = std::max(absmax, std::abs(weight[row * k + i]));
      const float scale = round_to(options.scale_dtype, absmax * options.clip / options.max_magnitude);
      ASSERT_EQ(load_as_f32(matrix.scales.data(), options.scale_dtype, row * groups + g), scale);
      for (int64_t i = g * group; i < end; ++i) {
        const float t = scale == 0 ? 0 : weight[row * k + i] / scale;
        ASSERT_EQ(codes[row * k + i], nearest_code(table, t)) << "row " << row << ", column " << i << ", t " << t;
      }
    }
  }
}

Codebook random_table(int bits, int64_t rows, std::mt19937_64& random) {
  Codebook codebook;
  codebook.bits = bits;
  codebook.rows = rows;
  codebook.values.resize(static_cast<size_t>(rows) << bits);
  for (float& value : codebook.values) value = std::normal_distribution<float>()(random);
  // Unsorted as it is; and some values twice, some of them zeros of both signs.
  for (float& value : codebook.values) {
    const int64_t kind = random_between(random, 0, 9);
    if (kind == 0) value = codebook.values[random_between(random, 0, static_cast<int64_t>(codebook.values.size()) - 1)];
    if (kind == 1) value = random() % 2 == 0 ? 0.0f : -0.0f;
  }
  codebook.values.back() = 2;
  return codebook;
}

// Multiples of 1/8 make ties with the integer tables frequent, and the rest is what checkpoints hold at worst.
float random_weight(std::mt19937_64& random) {
  const float normal = std::normal_distribution<float>()(random);
  switch (random_between(random, 0, 9)) {
    case 0:
      return 0;
    case 1:
      return std::ldexp(normal, -140);
    case 2:
    case 3:
    case 4:
      return std::round(8 * normal) / 8;
    default:
      return normal;
  }
}

TEST(Rtn, FollowsTheRules) {
  auto random = fresh_random();
  for (int draw = 0; draw < 300; ++draw) {
    const auto pick = [&](std::initializer_list<int64_t> from) {
      return from.begin()[random_between(random, 0, static_cast<int64_t>(from.size()) - 1)];
    };
    const int64_t n = random_between(random, 1, 6), k = 32 * random_between(random, 1, 12);
    const int bits = static_cast<int>(random_between(random, 2, 8));
    const auto kind = pick({0, 1, 2, 3});
    const Codebook codebook = kind == 0   ? nf_codebook(bits)
                              : kind == 1 ? int_codebook(bits)
                              : kind == 2 ? fp_codebook(std::max(bits, 3))
                                          : random_table(bits, pick({1, n}), random);
    RtnOptions options;
    options.group_size = pick({32, 64, 128, 256, -1});
    options.scale_dtype = static_cast<DType>(pick({0, 1, 2}));
    options.max_magnitude = codebook_max_magnitude(codebook, kind == 1);
    options.clip = pick({0, 1}) == 0 ? 1.0f : 0.7f;
    const auto dtype = static_cast<DType>(pick({0, 1, 2}));

    std::vector<float> weight(static_cast<size_t>(n * k));
    for (float& value : weight) value = round_to(dtype, random_weight(random));
    // Whole groups of zeros, of subnormals, and of numbers near the top of fp16's range.
    const float factors[] = {0, 0x1p-24f, 0x1p-14f, 0x1p+10f};
    for (int64_t i = 0; i < n * k; i += 32) {
      const int64_t factor = random_between(random, 0, 7);
      if (factor < 4) {
        for (int64_t j = i; j < i + 32; ++j) weight[j] = round_to(dtype, weight[j] * factors[factor]);
      }
    }
    std::vector<std::byte> stored(weight.size() * dtype_size(dtype));
    convert_from_f32(weight.data(), stored.data(), dtype, weight.size());
    const PackedMatrix matrix = quantize_rtn(stored.data(), dtype, n, k, codebook, options);
    validate(matrix.view(), "result");
    expect_rtn(weight, n, k, codebook, options, matrix);
    if (HasFatalFailure()) {
      FAIL() << "draw " << draw << ": bits " << bits << ", table " << kind << ", group " << options.group_size;
    }
  }
}

TEST(Rtn, TiesGoToTheLowerCode) {
  Codebook codebook = int_codebook(3);
  std::vector<float> weight(32);
  for (int i = 0; i < 32; ++i) weight[i] = std::max(-4.0f, 3.0f - 0.25f * static_cast<float>(i));
  const RtnOptions options{.group_size = -1, .scale_dtype = DType::kF32, .max_magnitude = 4.0f};
  EXPECT_EQ(codes_of(quantize_rtn(weight.data(), DType::kF32, 1, 32, codebook, options))[2], 6);  // 2.5 -> 2, not 3
  std::reverse(codebook.values.begin(), codebook.values.end());
  EXPECT_EQ(codes_of(quantize_rtn(weight.data(), DType::kF32, 1, 32, codebook, options))[2], 0);  // 2.5 -> 3
}

// A scale can underflow until t is infinite: the outermost values serve such weights.
TEST(Rtn, ATinyScaleSaturates) {
  std::vector<float> weight(32, -1e30f);
  weight[1] = 1e30f;
  const RtnOptions options{.group_size = -1, .scale_dtype = DType::kF32, .max_magnitude = 1.0f, .clip = 1e-45f};
  Codebook codebook = nf_codebook(3);
  for (const bool ascending : {true, false}) {
    const auto codes = codes_of(quantize_rtn(weight.data(), DType::kF32, 1, 32, codebook, options));
    EXPECT_EQ(codes[0], ascending ? 0 : 7);
    EXPECT_EQ(codes[1], ascending ? 7 : 0);
    std::reverse(codebook.values.begin(), codebook.values.end());
  }
}

TEST(Rtn, ThreadsDoNotChangeTheResult) {
  auto random = fresh_random();
  const int64_t n = 700, k = 416;
  std::vector<float> weight(static_cast<size_t>(n * k));
  for (float& value : weight) value = random_weight(random);
  const Codebook codebook = random_table(5, n, random);
  RtnOptions options;
  options.max_magnitude = codebook_max_magnitude(codebook, false);
  const PackedMatrix alone = quantize_rtn(weight.data(), DType::kF32, n, k, codebook, options);
  for (const int count : {1, 2, 3, 8}) {
    ThreadPool pool(count);
    const PackedMatrix shared = quantize_rtn(weight.data(), DType::kF32, n, k, codebook, options, &pool);
    EXPECT_EQ(shared.codes, alone.codes) << count;
    EXPECT_EQ(shared.scales, alone.scales) << count;
  }
}

TEST(RtnErrors, NameTheFirstWeightThatIsNotFinite) {
  ThreadPool pool(4);
  const int64_t n = 4000, k = 64;
  std::vector<float> weight(static_cast<size_t>(n * k), 1.0f);
  weight[3999 * k] = kInf;
  weight[3000 * k + 1] = kInf;
  weight[1234 * k + 40] = std::nanf("");
  weight[1234 * k + 41] = -kInf;
  const auto quantize = [&](ThreadPool* threads) {
    return message([&] { quantize_rtn(weight.data(), DType::kF32, n, k, nf_codebook(4), {}, threads); });
  };
  for (int run = 0; run < 20; ++run) {
    ASSERT_EQ(quantize(&pool), "row 1234, column 40: expected a finite weight, found nan");
  }
  weight[1234 * k + 40] = 0;
  EXPECT_EQ(quantize(nullptr), "row 1234, column 41: expected a finite weight, found -inf");
}

TEST(RtnErrors, NameWhatWasExpected) {
  std::vector<float> weight(128, 1.0f);
  weight[100] = 65536.0f;
  const auto quantize = [&](int64_t n, int64_t k, const Codebook& codebook, const RtnOptions& options) {
    return message([&] { quantize_rtn(weight.data(), DType::kF32, n, k, codebook, options); });
  };
  const Codebook nf4 = nf_codebook(4);
  EXPECT_EQ(quantize(2, 64, nf4, {.group_size = 32}), "row 1, group 1: the scale 65536 / 1 overflows fp16");
  EXPECT_EQ(quantize(2, 64, nf4, {.group_size = 32, .scale_dtype = DType::kBF16}), "no error");
  EXPECT_EQ(quantize(2, 48, nf4, {}), "quantize: expected K to be a positive multiple of 32, found 48");
  EXPECT_EQ(quantize(2, 64, nf4, {.group_size = 16}), "quantize: expected group size 32, 64, 128, 256 or -1, found 16");
  EXPECT_EQ(quantize(2, 64, nf4, {.clip = 0}), "quantize: expected clip in (0, 1], found 0");
  EXPECT_EQ(quantize(2, 64, nf4, {.clip = std::nanf("")}), "quantize: expected clip in (0, 1], found nan");
  EXPECT_EQ(quantize(2, 64, nf4, {.max_magnitude = 0}),
            "quantize: expected a codebook with a finite largest magnitude above 0, found 0");
  EXPECT_EQ(quantize(2, 64, Codebook{1, 3, 1, std::vector<float>(6, 1.0f)}, {}),
            "codebook: expected 1 or 2 tables, found 3");
  EXPECT_EQ(quantize(0, 64, nf4, {}), "no error");
}

TEST(RtnErrors, RowsMustFitTheTarget) {
  const std::vector<float> weight(128, 1.0f);
  const Codebook nf4 = nf_codebook(4);
  PackedMatrix target = allocate_packed(2, 64, 32, DType::kF16, nf4);
  const auto quantize = [&](int64_t begin, int64_t end, const Codebook& codebook, const RtnOptions& options) {
    return message([&] { quantize_rtn_rows(weight.data(), DType::kF32, begin, end, codebook, options, target); });
  };
  EXPECT_EQ(quantize(1, 2, nf4, {.group_size = 32}), "no error");
  EXPECT_EQ(quantize(1, 3, nf4, {.group_size = 32}), "quantize: expected rows within 0..2, found 1..3");
  const std::string other = "quantize: expected a target allocated for the same codebook and options";
  EXPECT_EQ(quantize(0, 1, nf_codebook(3), {.group_size = 32}), other);
  EXPECT_EQ(quantize(0, 1, nf4, {.group_size = 64}), other);
  EXPECT_EQ(quantize(0, 1, nf4, {.group_size = 32, .scale_dtype = DType::kF32}), other);
}

}  // namespace
}  // namespace flute
