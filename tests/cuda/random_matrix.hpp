#pragma once
#include <random>
#include <string>
#include <vector>

#include "flute/gemm.hpp"

namespace flute {

/// A format that CUDA takes, and the rows of each segment.
struct Draw {
  std::vector<int64_t> rows = {64};
  int64_t k = 256;
  int bits = 4;
  int64_t group_size = 64;
  DType dtype = DType::kF16, scale_dtype = DType::kF16;

  int64_t n() const {
    int64_t sum = 0;
    for (const int64_t r : rows) sum += r;
    return sum;
  }
  std::string text() const {
    std::string text = "n";
    for (const int64_t r : rows) text += " " + std::to_string(r);
    return text + ", k " + std::to_string(k) + ", " + std::to_string(bits) + " bits, group " +
           std::to_string(group_size) + ", " + std::string(dtype_name(dtype)) + ", scales " +
           std::string(dtype_name(scale_dtype));
  }
};

inline std::vector<PackedMatrix> random_segments(std::mt19937_64& random, const Draw& draw) {
  std::uniform_real_distribution<float> value(-1, 1), scale(0.5f, 2.0f);
  std::vector<PackedMatrix> segments;
  for (const int64_t n : draw.rows) {
    PackedMatrix matrix;
    matrix.n = n;
    matrix.k = draw.k;
    matrix.bits = draw.bits;
    matrix.group_size = draw.group_size;
    matrix.scale_dtype = draw.scale_dtype;
    matrix.codes.resize(static_cast<size_t>(n * draw.k / 32 * draw.bits));
    for (uint32_t& word : matrix.codes) word = static_cast<uint32_t>(random());
    const auto scales = static_cast<size_t>(n * matrix.view().groups());
    matrix.scales.resize(scales * dtype_size(draw.scale_dtype));
    for (size_t i = 0; i < scales; ++i) store_from_f32(matrix.scales.data(), draw.scale_dtype, i, scale(random));
    matrix.codebook.resize(size_t{1} << draw.bits);
    for (float& entry : matrix.codebook) entry = value(random);
    segments.push_back(std::move(matrix));
  }
  return segments;
}

inline std::vector<PackedView> views_of(const std::vector<PackedMatrix>& segments) {
  std::vector<PackedView> views;
  for (const PackedMatrix& segment : segments) views.push_back(segment.view());
  return views;
}

constexpr Device kCudaDevice{Device::Kind::kCuda, 0};

}  // namespace flute
