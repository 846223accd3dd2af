// Packed to tiled and back on the emulated device: every code and scale where layout.hpp says, and nothing beside.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/seed.hpp"
#include "cuda/emulation/machine.hpp"
#include "cuda/tiling.cuh"
#include "random_packed.hpp"

namespace flute::cuda {
namespace {

using namespace tiling;

// A matrix made in pieces, as segments and staging memory make it.
struct Draw {
  int bits, n, k, group;
  std::vector<TiledRows> pieces;

  int64_t groups_of_rows() const { return row_groups(n); }
  int groups() const { return group < 0 ? 1 : (k + group - 1) / group; }
};

Draw draw_from(std::mt19937_64& random, int bits) {
  const auto pick = [&](int low, int high) { return static_cast<int>(random_between(random, low, high)); };
  Draw draw{bits, pick(1, 90), 32 * pick(1, 70), 32 << pick(0, 3), {}};
  if (pick(0, 4) == 0) draw.group = -1;
  for (int64_t row = 0; row < draw.n;) {
    const int64_t rows = std::min<int64_t>(draw.n - row, kGroupRows * pick(1, 3));
    draw.pieces.push_back({rows, row, draw.n});
    row += rows;
  }
  return draw;
}

void run_blocks(int64_t rows, int length, int piece, const std::function<void()>& kernel) {
  emulation::Launch launch;
  launch.blocks = static_cast<int>(row_groups(rows)) * ((length + piece - 1) / piece);
  launch.threads = kThreads;
  emulation::run(launch, kernel);
}

template <int kBits>
void test_codes() {
  auto random = fresh_random();
  for (int i = 0; i < 12; ++i) {
    const Draw draw = draw_from(random, kBits);
    SCOPED_TRACE("n " + std::to_string(draw.n) + ", k " + std::to_string(draw.k));
    const size_t row_words = static_cast<size_t>(draw.k) / 32 * kBits,
                 units = static_cast<size_t>(units_along_k(draw.k));
    const size_t unit_words = unit_bytes(kBits) / 4, row_groups = static_cast<size_t>(draw.groups_of_rows());
    std::vector<uint32_t> packed(row_words * static_cast<size_t>(draw.n));
    for (uint32_t& word : packed) word = static_cast<uint32_t>(random());
    constexpr uint32_t kUntouched = 0xdeadbeef;
    std::vector<uint32_t> tiled(units * row_groups * unit_words + 8, kUntouched), back(packed.size() + 8, kUntouched);
    for (const TiledRows& at : draw.pieces) {
      const size_t from = static_cast<size_t>(at.first) * row_words;
      run_blocks(at.rows, draw.k, kBlockK, [&] { tile_kernel<kBits>(packed.data() + from, tiled.data(), at, draw.k); });
    }
    for (const TiledRows& at : draw.pieces) {
      const size_t to = static_cast<size_t>(at.first) * row_words;
      run_blocks(at.rows, draw.k, kBlockK, [&] { untile_kernel<kBits>(tiled.data(), back.data() + to, at, draw.k); });
    }
    EXPECT_TRUE(std::equal(packed.begin(), packed.end(), back.begin()));
    for (size_t j = packed.size(); j < back.size(); ++j) EXPECT_EQ(back[j], kUntouched);
    for (size_t j = tiled.size() - 8; j < tiled.size(); ++j) EXPECT_EQ(tiled[j], kUntouched);
    const auto code_at = [&](size_t row, size_t k) -> uint32_t {
      if (row >= static_cast<size_t>(draw.n) || k >= static_cast<size_t>(draw.k)) return 0;
      uint32_t code = 0;
      for (size_t bit = 0; bit < kBits; ++bit) {
        const size_t position = k * kBits + bit;
        code |= (packed[row * row_words + position / 32] >> position % 32 & 1) << bit;
      }
      return code;
    };
    int wrong = 0;
    for (size_t row = 0; row < row_groups * kGroupRows; ++row) {
      for (size_t k = 0; k < units * kUnitK; ++k) {
        const size_t unit = k / kUnitK * row_groups + row / kGroupRows;
        const auto word = [&](int lane, int index) {
          return tiled[unit * unit_words + static_cast<size_t>(word_position(kBits, lane, index))];
        };
        const int in_unit = static_cast<int>(row % kGroupRows), at = static_cast<int>(k % kUnitK);
        wrong += tiled_code(kBits, in_unit, at, word) != code_at(row, k);
      }
    }
    EXPECT_EQ(wrong, 0);
  }
}

TEST(EmulatedTiling, CodesOf4BitsLieWhereTheLayoutSays) { test_codes<4>(); }
TEST(EmulatedTiling, CodesOf3BitsLieWhereTheLayoutSays) { test_codes<3>(); }
TEST(EmulatedTiling, CodesOf2BitsLieWhereTheLayoutSays) { test_codes<2>(); }

TEST(EmulatedTiling, ScalesLieWhereTheLayoutSays) {
  auto random = fresh_random();
  for (int i = 0; i < 12; ++i) {
    const Draw draw = draw_from(random, 4);
    SCOPED_TRACE("n " + std::to_string(draw.n) + ", k " + std::to_string(draw.k) + ", group " +
                 std::to_string(draw.group));
    const size_t groups = static_cast<size_t>(draw.groups()), row_groups = static_cast<size_t>(draw.groups_of_rows());
    const int tiled_count = tiled_groups(draw.group, draw.k);
    std::vector<uint16_t> scales(groups * static_cast<size_t>(draw.n));
    for (uint16_t& scale : scales) scale = static_cast<uint16_t>(random_between(random, 1, 0x7bff));  // finite fp16
    constexpr uint16_t kUntouched = 0xdead;
    std::vector<uint16_t> tiled(static_cast<size_t>(tiled_count) * row_groups * kGroupRows + 8, kUntouched);
    std::vector<uint16_t> back(scales.size() + 8, kUntouched);
    unsigned long long bad = kNoneBad;
    for (const TiledRows& at : draw.pieces) {
      const size_t from = static_cast<size_t>(at.first) * groups;
      run_blocks(at.rows, tiled_count, kScaleGroups, [&] {
        tile_scales_kernel(scales.data() + from, DType::kF16, at, draw.groups(), tiled_count, DType::kF16, tiled.data(),
                           &bad, at.first);
      });
    }
    for (const TiledRows& at : draw.pieces) {
      const size_t to = static_cast<size_t>(at.first) * groups;
      run_blocks(at.rows, draw.groups(), kScaleGroups,
                 [&] { untile_scales_kernel(tiled.data(), at, draw.groups(), back.data() + to); });
    }
    EXPECT_EQ(bad, kNoneBad);
    EXPECT_TRUE(std::equal(scales.begin(), scales.end(), back.begin()));
    for (size_t j = scales.size(); j < back.size(); ++j) EXPECT_EQ(back[j], kUntouched);
    for (size_t j = tiled.size() - 8; j < tiled.size(); ++j) EXPECT_EQ(tiled[j], kUntouched);
    int wrong = 0;
    for (size_t row = 0; row < row_groups * kGroupRows; ++row) {
      for (size_t group = 0; group < static_cast<size_t>(tiled_count); ++group) {
        const size_t position = static_cast<size_t>(scale_position(static_cast<int>(row % kGroupRows)));
        const uint16_t found = tiled[(group * row_groups + row / kGroupRows) * kGroupRows + position];
        const bool there = row < static_cast<size_t>(draw.n) && group < groups;
        wrong += found != (there ? scales[row * groups + group] : 0);
      }
    }
    EXPECT_EQ(wrong, 0);
    // The first scale that is not finite is named, counted over the whole matrix.
    const size_t last = scales.size() - 1 - random() % std::min<size_t>(scales.size(), 3);
    scales[last] = 0x7c00;
    const TiledRows& at = draw.pieces.back();
    const size_t from = static_cast<size_t>(at.first) * groups;
    run_blocks(at.rows, tiled_count, kScaleGroups, [&] {
      tile_scales_kernel(scales.data() + from, DType::kF16, at, draw.groups(), tiled_count, DType::kF16, tiled.data(),
                         &bad, at.first);
    });
    EXPECT_EQ(bad, last >= from ? last : kNoneBad);
  }
}

template <int kBits>
void test_weights() {
  auto random = fresh_random();
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (int i = 0; i < 6; ++i) {
      const Draw draw = draw_from(random, kBits);
      SCOPED_TRACE("n " + std::to_string(draw.n) + ", k " + std::to_string(draw.k) + ", group " +
                   std::to_string(draw.group) + ", " + std::string(dtype_name(dtype)));
      const size_t row_words = static_cast<size_t>(draw.k) / 32 * kBits, groups = static_cast<size_t>(draw.groups());
      const auto n = static_cast<size_t>(draw.n), k = static_cast<size_t>(draw.k);
      const auto row_groups = static_cast<size_t>(draw.groups_of_rows());
      const int tiled_count = tiled_groups(draw.group, draw.k);
      PackedMatrix packed;
      packed.n = draw.n, packed.k = draw.k, packed.bits = kBits, packed.group_size = draw.group;
      packed.scale_dtype = dtype;
      packed.codes.resize(row_words * n);
      for (uint32_t& word : packed.codes) word = static_cast<uint32_t>(random());
      packed.scales = random_values(random, dtype, static_cast<int64_t>(n * groups), -2, 2);
      for (int code = 0; code < 1 << kBits; ++code) packed.codebook.push_back(static_cast<float>(code * code) - 7.3f);
      std::vector<uint16_t> codebook(packed.codebook.size()), expected(n * k);
      convert_from_f32(packed.codebook.data(), codebook.data(), dtype, codebook.size());
      dequantize_rows(packed.view(), 0, draw.n, dtype, expected.data());

      const size_t units = static_cast<size_t>(units_along_k(draw.k));
      std::vector<uint32_t> tiled(units * row_groups * unit_bytes(kBits) / 4);
      std::vector<uint16_t> scales(static_cast<size_t>(tiled_count) * row_groups * kGroupRows);
      unsigned long long bad = kNoneBad;
      constexpr uint16_t kUntouched = 0xdead;
      std::vector<uint16_t> found(n * k + 8, kUntouched);
      for (const TiledRows& at : draw.pieces) {
        const auto first = static_cast<size_t>(at.first);
        run_blocks(at.rows, draw.k, kBlockK,
                   [&] { tile_kernel<kBits>(packed.codes.data() + first * row_words, tiled.data(), at, draw.k); });
        run_blocks(at.rows, tiled_count, kScaleGroups, [&] {
          tile_scales_kernel(packed.scales.data() + first * groups * 2, dtype, at, draw.groups(), tiled_count, dtype,
                             scales.data(), &bad, at.first);
        });
      }
      for (const TiledRows& at : draw.pieces) {
        run_blocks(at.rows, draw.k, kBlockK, [&] {
          dequantize_kernel<kBits>(tiled.data(), scales.data(), codebook.data(),
                                   found.data() + static_cast<size_t>(at.first) * k, at, draw.k, draw.group, dtype);
        });
      }
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), found.begin()));
      for (size_t j = n * k; j < found.size(); ++j) EXPECT_EQ(found[j], kUntouched);
    }
  }
}

TEST(EmulatedTiling, WeightsOf4BitsAreThoseOfTheFormat) { test_weights<4>(); }
TEST(EmulatedTiling, WeightsOf3BitsAreThoseOfTheFormat) { test_weights<3>(); }
TEST(EmulatedTiling, WeightsOf2BitsAreThoseOfTheFormat) { test_weights<2>(); }

}  // namespace
}  // namespace flute::cuda
