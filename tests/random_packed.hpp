#pragma once
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "flute/packed.hpp"

namespace flute {

/// What random packed matrices look like, and the rows of each segment.
struct PackedDraw {
  std::vector<int64_t> rows = {64};
  int64_t k = 64;
  int bits = 4;
  int64_t group_size = 64;
  DType scale_dtype = DType::kF16;
  bool per_row = false, offsets = false;

  int64_t n() const {
    int64_t sum = 0;
    for (const int64_t r : rows) sum += r;
    return sum;
  }
  std::string text() const {
    std::string text = "n";
    for (const int64_t r : rows) text += " " + std::to_string(r);
    return text + ", k " + std::to_string(k) + ", " + std::to_string(bits) + " bits, group " +
           std::to_string(group_size) + ", scales " + std::string(dtype_name(scale_dtype)) +
           (per_row ? ", table per row" : "") + (offsets ? ", offsets" : "");
  }
};

/// `count` values of `dtype`, uniform in [low, high].
inline std::vector<std::byte> random_values(std::mt19937_64& random, DType dtype, int64_t count, float low,
                                            float high) {
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<std::byte> values(static_cast<size_t>(count) * dtype_size(dtype));
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) store_from_f32(values.data(), dtype, i, uniform(random));
  return values;
}

/// Random bytes as values of `dtype`, without NaN and infinity: a copy must keep every one of them.
inline std::vector<std::byte> random_finite(std::mt19937_64& random, DType dtype, int64_t count) {
  std::vector<std::byte> values(static_cast<size_t>(count) * dtype_size(dtype));
  for (std::byte& byte : values) byte = static_cast<std::byte>(random());
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    if (!(std::abs(load_as_f32(values.data(), dtype, i)) <= std::numeric_limits<float>::max())) {
      store_from_f32(values.data(), dtype, i, -0.0f);
    }
  }
  return values;
}

/// A matrix of n rows, whatever the draw says of rows, with random codes; its scales and offsets are still missing and
/// its table is zero.
inline PackedMatrix random_codes(std::mt19937_64& random, const PackedDraw& draw, int64_t n) {
  PackedMatrix matrix;
  matrix.n = n;
  matrix.k = draw.k;
  matrix.bits = draw.bits;
  matrix.group_size = draw.group_size;
  matrix.scale_dtype = draw.scale_dtype;
  matrix.codes.resize(static_cast<size_t>(n * matrix.view().words_per_row()));
  for (uint32_t& word : matrix.codes) word = static_cast<uint32_t>(random());
  matrix.codebook.resize((size_t{1} << draw.bits) * static_cast<size_t>(draw.per_row ? n : 1));
  return matrix;
}

/// For copies: any finite values at all.
inline PackedMatrix random_packed(std::mt19937_64& random, const PackedDraw& draw, int64_t n) {
  PackedMatrix matrix = random_codes(random, draw, n);
  const int64_t scales = n * matrix.view().groups();
  matrix.scales = random_finite(random, draw.scale_dtype, scales);
  if (draw.offsets) matrix.offsets = random_finite(random, draw.scale_dtype, scales);
  const auto values = random_finite(random, DType::kF32, static_cast<int64_t>(matrix.codebook.size()));
  std::memcpy(matrix.codebook.data(), values.data(), values.size());
  return matrix;
}

/// For arithmetic: values of ordinary size.
inline PackedMatrix random_ordinary(std::mt19937_64& random, const PackedDraw& draw, int64_t n) {
  PackedMatrix matrix = random_codes(random, draw, n);
  const int64_t scales = n * matrix.view().groups();
  matrix.scales = random_values(random, draw.scale_dtype, scales, -2, 2);
  if (draw.offsets) matrix.offsets = random_values(random, draw.scale_dtype, scales, -0.5f, 0.5f);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (float& value : matrix.codebook) value = uniform(random);
  return matrix;
}

inline std::vector<PackedMatrix> random_segments(std::mt19937_64& random, const PackedDraw& draw) {
  std::vector<PackedMatrix> segments;
  for (const int64_t n : draw.rows) segments.push_back(random_ordinary(random, draw, n));
  return segments;
}

inline std::vector<PackedView> views_of(const std::vector<PackedMatrix>& segments) {
  std::vector<PackedView> views;
  for (const PackedMatrix& segment : segments) views.push_back(segment.view());
  return views;
}

}  // namespace flute
