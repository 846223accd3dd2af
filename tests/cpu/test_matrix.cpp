#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/seed.hpp"
#include "error_of.hpp"
#include "flute/error.hpp"
#include "flute/gemm.hpp"
#include "flute/threads.hpp"
#include "random_packed.hpp"

namespace flute {
namespace {

/// The same fields, bit for bit: -0 is not 0.
void expect_same(const PackedMatrix& found, const PackedMatrix& expected) {
  EXPECT_EQ(found.n, expected.n);
  EXPECT_EQ(found.k, expected.k);
  EXPECT_EQ(found.bits, expected.bits);
  EXPECT_EQ(found.group_size, expected.group_size);
  EXPECT_EQ(found.scale_dtype, expected.scale_dtype);
  EXPECT_EQ(found.codes, expected.codes);
  EXPECT_EQ(found.scales, expected.scales);
  EXPECT_EQ(found.offsets, expected.offsets);
  ASSERT_EQ(found.codebook.size(), expected.codebook.size());
  EXPECT_EQ(std::memcmp(found.codebook.data(), expected.codebook.data(), found.codebook.size() * sizeof(float)), 0);
}

TEST(Matrix, ToPackedGivesBackWhatItWasMadeFrom) {
  auto random = fresh_random();
  ThreadPool pool(2);
  constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  for (int bits = 1; bits <= 8; ++bits) {
    for (const int64_t group_size : {32, 64, 128, 256, -1}) {
      for (const DType scale_dtype : kTypes) {
        PackedDraw format;
        format.bits = bits;
        format.k = 32 * random_between(random, 1, 13);  // most leave a short last group
        format.group_size = group_size;
        format.scale_dtype = scale_dtype;
        std::vector<PackedMatrix> segments;
        const int64_t count = random_between(random, 1, 4);
        for (int64_t i = 0; i < count; ++i) {
          format.per_row = random_between(random, 0, 1) == 1;  // each segment has tables of its own
          format.offsets = random_between(random, 0, 1) == 1;
          const bool last = i + 1 == count;
          segments.push_back(
              random_packed(random, format, last ? random_between(random, 1, 70) : 32 * random_between(random, 1, 3)));
        }
        std::vector<PackedView> views;
        int64_t n = 0;
        for (const PackedMatrix& segment : segments) {
          views.push_back(segment.view());
          n += segment.n;
        }
        const Matrix matrix = Matrix::from_packed(Device{}, views, {.threads = &pool});
        SCOPED_TRACE("bits " + std::to_string(bits) + ", group " + std::to_string(group_size) + ", k " +
                     std::to_string(format.k) + ", scales " + std::string(dtype_name(scale_dtype)));
        EXPECT_EQ(matrix.n(), n);
        EXPECT_EQ(matrix.k(), format.k);
        EXPECT_EQ(matrix.bits(), bits);
        EXPECT_EQ(matrix.group_size(), group_size);
        ASSERT_EQ(matrix.segment_count(), static_cast<int>(segments.size()));
        for (size_t i = 0; i < segments.size(); ++i) {
          SCOPED_TRACE("segment " + std::to_string(i) + " of " + std::to_string(segments.size()));
          expect_same(matrix.to_packed(static_cast<int>(i)), segments[i]);
        }
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

Matrix stack(const std::vector<PackedMatrix>& segments) { return Matrix::from_packed(Device{}, views_of(segments)); }

std::string stack_error(const std::vector<PackedMatrix>& segments) {
  return error_of(ErrorCode::kInvalidArgument, [&] { (void)stack(segments); });
}

TEST(Matrix, RefusesSegmentsThatDoNotStack) {
  auto random = fresh_random();
  const PackedDraw format;
  const PackedMatrix good = random_packed(random, format, 32);
  EXPECT_EQ(stack_error({}), "matrix: expected 1..4 segments, found 0");
  EXPECT_EQ(stack_error({good, good, good, good, good}), "matrix: expected 1..4 segments, found 5");
  EXPECT_EQ(stack_error({good, random_packed(random, format, 33), good}),
            "matrix: segment 1: expected a multiple of 32 rows before another segment, found 33");
  EXPECT_EQ(stack({good, random_packed(random, format, 33)}).n(), 65);  // the last one may have any number

  const std::string expected = "expected K 64, 4 bits, group size 64 as in segment 0, found ";
  PackedDraw other = format;
  other.bits = 3;
  EXPECT_EQ(stack_error({good, random_packed(random, other, 32)}), "matrix: segment 1: " + expected + "64, 3, 64");
  other = format;
  other.group_size = 128;
  EXPECT_EQ(stack_error({good, good, random_packed(random, other, 32)}),
            "matrix: segment 2: " + expected + "64, 4, 128");
  other = format;
  other.k = 96;
  EXPECT_EQ(stack_error({good, random_packed(random, other, 32)}), "matrix: segment 1: " + expected + "96, 4, 64");
}

TEST(Matrix, RefusesASegmentThatIsNotAsDocumented) {
  auto random = fresh_random();
  const PackedMatrix good = random_packed(random, {}, 32);
  PackedMatrix bad = good;
  bad.codes.pop_back();
  EXPECT_EQ(stack_error({good, bad}), "matrix: segment 1: codes: expected 32 x 8 words, found 255");
  bad = good;
  bad.codebook.resize(17);
  EXPECT_EQ(stack_error({bad}), "matrix: segment 0: codebook: expected 16 values, or 32 x 16, found 17");
  bad = good;
  bad.codebook[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(stack_error({bad}), "matrix: segment 0: codebook: row 0, code 5: expected a finite value, found nan");
  bad = good;
  store_from_f32(bad.scales.data(), bad.scale_dtype, 7, std::numeric_limits<float>::infinity());
  EXPECT_EQ(stack_error({bad}), "matrix: segment 0: scale of row 7, group 0: expected a finite value, found inf");
}

TEST(Matrix, SegmentsThatAreNotThereAreRefused) {
  auto random = fresh_random();
  const std::vector<PackedMatrix> segments = {random_packed(random, {}, 32), random_packed(random, {}, 8)};
  const Matrix matrix = stack(segments);
  EXPECT_EQ(matrix.device(), Device{});
  for (const int segment : {-1, 2}) {
    EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { (void)matrix.to_packed(segment); }),
              "matrix: expected a segment below 2, found " + std::to_string(segment));
  }
}

TEST(Matrix, GemmNamesTheArgumentThatCannotBe) {
  auto random = fresh_random();
  const Matrix matrix = stack({random_packed(random, {}, 40)});
  std::vector<float> x(3 * 64), y(3 * 40, 7.0f);
  GemmArgs good;
  good.m = 3;
  good.x = x.data();
  good.y = y.data();
  const auto message = [&](const GemmArgs& args) {
    return error_of(ErrorCode::kInvalidArgument, [&] { gemm(matrix, args); });
  };
  GemmArgs bad = good;
  bad.m = -1;
  EXPECT_EQ(message(bad), "gemm: expected m >= 0, found -1");
  bad = good;
  bad.ldx = 63;
  EXPECT_EQ(message(bad), "gemm: expected ldx >= k = 64, found 63");
  bad = good;
  bad.ldy = 39;
  EXPECT_EQ(message(bad), "gemm: expected ldy >= n = 40, found 39");
  bad = good;
  bad.x = nullptr;
  EXPECT_EQ(message(bad), "gemm: expected x and y, found null for x");
  bad = good;
  bad.y = nullptr;
  EXPECT_EQ(message(bad), "gemm: expected x and y, found null for y");
  bad = good;
  bad.dtype = static_cast<DType>(3);
  EXPECT_EQ(message(bad), "gemm: expected dtype fp32, fp16 or bf16, found 3");
  bad = good;
  bad.m = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(message(bad), "gemm: m = 9223372036854775807 is more than n = 40, k = 64 allow");
  EXPECT_EQ(y, std::vector<float>(3 * 40, 7.0f)) << "a refused call wrote to y";
}

}  // namespace
}  // namespace flute
