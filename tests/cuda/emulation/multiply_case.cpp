#include "cuda/emulation/multiply_case.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cuda/emulation/cuda_runtime.h"
#include "cuda/emulation/machine.hpp"

namespace flute::cuda {
namespace {

constexpr uint16_t kNan = 0xffff;
constexpr size_t kGuard = 64;

/// Values of T as bits, and what they are.
struct Values {
  bool bf16;
  uint16_t rounded(double value) const {
    const auto f = static_cast<float>(value);
    return bf16 ? __float2bfloat16_rn(f).bits : __float2half_rn(f).bits;
  }
  double of(uint16_t bits) const { return bf16 ? float{__nv_bfloat16{bits}} : float{__half{bits}}; }
};

struct Operands {
  std::vector<uint8_t> codes, scales;
  std::vector<uint16_t> codebooks, x, bias;
  std::vector<double> w;  // [n][k], not rounded
};

Operands make_operands(std::mt19937_64& random, const Draw& draw) {
  const Values values{draw.format.bf16};
  const auto pick = [&](int low, int high) { return static_cast<int>(random_between(random, low, high)); };
  const auto uniform = [&](double low, double high) {
    return values.rounded(std::uniform_real_distribution<double>(low, high)(random));
  };
  const Shape& shape = draw.shape;
  const int bits = draw.format.bits, n = shape.n, k = shape.k;
  const int row_groups = (n + kGroupRows - 1) / kGroupRows, units = units_along_k(k);
  const int group = draw.format.group_size < 0 ? k : draw.format.group_size;
  Operands o;
  o.codebooks.resize(static_cast<size_t>(std::max(shape.segments, 1)) << bits);
  for (uint16_t& value : o.codebooks) value = uniform(-1, 1);
  std::vector<uint32_t> codes(static_cast<size_t>(n) * k);
  for (uint32_t& code : codes) code = static_cast<uint32_t>(pick(0, (1 << bits) - 1));
  const auto code_at = [&](int row, int at) {
    return row < n && at < k ? codes[static_cast<size_t>(row) * k + at] : 0;
  };
  o.codes.resize(static_cast<size_t>(row_groups) * units * unit_bytes(bits) + kReadBeyond);
  for (int unit = 0; unit < row_groups * units; ++unit) {
    const int row = unit % row_groups * kGroupRows, at = unit / row_groups * kUnitK;
    for (int i = 0; i < 32 * bits; ++i) {
      const int lane = i / bits, word = i % bits;
      const uint32_t v = tiled_word(bits, lane, word, [&](int r, int c) { return code_at(row + r, at + c); });
      std::memcpy(&o.codes[static_cast<size_t>(unit) * unit_bytes(bits) + word_position(bits, lane, word) * 4], &v, 4);
    }
  }
  o.scales.resize(static_cast<size_t>(row_groups) * tiled_groups(draw.format.group_size, k) * kScaleBytes +
                  kReadBeyond);
  o.w.resize(codes.size());
  for (int row = 0, segment = 0; row < n; ++row) {
    while (segment + 1 < shape.segments && row >= shape.segment_row[segment + 1]) ++segment;
    for (int g = 0; g * group < k; ++g) {
      const uint16_t scale = uniform(0.5, 2);
      const size_t at = (static_cast<size_t>(g) * row_groups + row / kGroupRows) * kScaleBytes;
      std::memcpy(&o.scales[at + scale_position(row % kGroupRows) * 2], &scale, 2);
      for (int c = g * group; c < std::min(k, (g + 1) * group); ++c) {
        const uint16_t value = o.codebooks[(static_cast<size_t>(segment) << bits) + code_at(row, c)];
        o.w[static_cast<size_t>(row) * k + c] = values.of(value) * values.of(scale);
      }
    }
  }
  o.x.resize(static_cast<size_t>(shape.m - 1) * draw.ldx + k, kNan);
  for (int token = 0; token < shape.m; ++token) {
    const int one = pick(0, k - 1);
    for (int c = 0; c < k; ++c) {
      o.x[static_cast<size_t>(token) * draw.ldx + c] = draw.ones ? values.rounded(c == one) : uniform(-1, 1);
    }
  }
  if (draw.bias) {
    o.bias.resize(static_cast<size_t>(n));
    for (uint16_t& value : o.bias) value = uniform(-1, 1);
  }
  return o;
}

/// y is the guard, m rows, the guard.
std::string wrong_in_y(const Draw& draw, const Operands& o, const std::vector<uint16_t>& y) {
  const Values values{draw.format.bf16};
  const int k = draw.shape.k;
  const double u = draw.format.bf16 ? 0x1p-8 : 0x1p-11;  // of a rounding to T, relative
  size_t written = 0;
  for (int token = 0; token < draw.shape.m; ++token) {
    for (int n = 0; n < draw.shape.n; ++n) {
      double expected = draw.bias ? values.of(o.bias[static_cast<size_t>(n)]) : 0, magnitudes = std::abs(expected);
      for (int c = 0; c < k; ++c) {
        const double term =
            o.w[static_cast<size_t>(n) * k + c] * values.of(o.x[static_cast<size_t>(token) * draw.ldx + c]);
        expected += term, magnitudes += std::abs(term);
      }
      const double found = values.of(y[kGuard + static_cast<size_t>(token) * draw.ldy + n]);
      written += y[kGuard + static_cast<size_t>(token) * draw.ldy + n] != kNan;
      // Every weight may be rounded to T and every sum to float, and the result is rounded to T.
      double allowed = (u + (k + 1) * 0x1p-24) * magnitudes + 2 * u * std::abs(expected) + 0x1p-24;
      if (draw.ones && !draw.bias) {  // one product, rounded once
        expected = values.of(values.rounded(expected)), allowed = 0;
      }
      if (!(std::abs(found - expected) <= allowed)) {
        return "token " + std::to_string(token) + ", row " + std::to_string(n) + ": expected " +
               std::to_string(expected) + " within " + std::to_string(allowed) + ", found " + std::to_string(found);
      }
    }
  }
  const size_t untouched = static_cast<size_t>(std::count(y.begin(), y.end(), kNan));
  return untouched + written == y.size() ? "" : "wrote beside y";
}

}  // namespace

Draw draw_matrix(std::mt19937_64& random, int bits, bool bf16, int groups, int tokens_low, int tokens_high,
                 int row_groups) {
  constexpr int kGroupSizes[] = {64, 128, 256, -1};
  const auto pick = [&](int low, int high) { return static_cast<int>(random_between(random, low, high)); };
  Draw draw;
  draw.format = {bits, groups == 2 ? 32 : kGroupSizes[pick(0, 3)], bf16};
  Shape& shape = draw.shape;
  shape.m = pick(tokens_low, tokens_high);
  shape.n = pick(1, row_groups) * kGroupRows - (pick(0, 1) == 0 ? 0 : pick(0, kGroupRows - 1));
  shape.k = 32 * pick(1, pick(0, 1) == 0 ? 8 : 40);
  shape.segments = pick(0, kMaxSegments);
  for (int s = 1; s <= shape.segments; ++s) {
    shape.segment_row[s] =
        s == shape.segments ? shape.n : kGroupRows * pick(shape.segment_row[s - 1] / kGroupRows, shape.n / kGroupRows);
  }
  draw.ldx = shape.k + 8 * pick(0, 3), draw.ldy = shape.n + pick(0, 5);
  draw.bias = pick(0, 1) == 0;
  return draw;
}

std::string wrong_in(std::mt19937_64& random, const Draw& draw, int blocks, int threads, int shared_bytes, int mode,
                     const std::function<void(const MultiplyArguments&)>& kernel) {
  const Operands o = make_operands(random, draw);
  std::vector<uint16_t> y(2 * kGuard + static_cast<size_t>(draw.shape.m) * draw.ldy, kNan);
  MultiplyArguments arguments = {};
  arguments.codes = o.codes.data();
  arguments.scales = o.scales.data();
  arguments.codebooks = o.codebooks.data();
  arguments.x = reinterpret_cast<const uint8_t*>(o.x.data());
  arguments.y = y.data() + kGuard;
  arguments.bias = draw.bias ? o.bias.data() : nullptr;
  arguments.ldx = draw.ldx, arguments.ldy = draw.ldy;
  arguments.m = draw.shape.m, arguments.n = draw.shape.n, arguments.k = draw.shape.k;
  arguments.dependent_launch = true;
  emulation::Launch launch;
  launch.blocks = blocks, launch.threads = threads, launch.shared_bytes = shared_bytes;
  launch.shared_begin = (mode & 1) != 0 ? kTableAddress : 0;
  launch.copies = (mode & 2) != 0 ? emulation::Copies::kWhenAwaited : emulation::Copies::kAtOnce;
  launch.backwards = (mode & 4) != 0;
  launch.readable = {
      {o.codes.data(), o.codes.size()}, {o.scales.data(), o.scales.size()}, {o.x.data(), o.x.size() * 2}};
  try {
    emulation::run(launch, [&] { kernel(arguments); });
  } catch (const std::exception& error) {
    return error.what();
  }
  return wrong_in_y(draw, o, y);
}

}  // namespace flute::cuda
