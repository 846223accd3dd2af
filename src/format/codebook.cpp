#include "flute/codebook.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>

#include <fmt/ranges.h>

#include "base/fail.hpp"
#include "format/codebook_names.hpp"

namespace flute {
namespace {

constexpr int kMaxBits = 8;

void expect_bits(std::string_view what, int bits, int lowest) {
  if (bits < lowest || bits > kMaxBits) {
    fail(ErrorCode::kInvalidArgument, "{} codebook: expected bits {}..{}, found {}", what, lowest, kMaxBits, bits);
  }
}

Codebook one_table(int bits, std::vector<float> values) {
  Codebook codebook;
  codebook.bits = bits;
  codebook.values = std::move(values);
  return codebook;
}

/// The quantile function of the standard normal distribution for 0.5 <= p < 1, by Newton's method on std::erfc. The
/// distribution function is concave there, so that the iteration climbs from 0 to the root without overshooting.
double normal_quantile(double p) {
  double x = 0;
  for (int step = 0; step < 16; ++step) {
    const double tail = 0.5 * std::erfc(x / std::numbers::sqrt2);
    const double density = std::exp(-0.5 * x * x) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
    x += (tail - (1 - p)) / density;
  }
  return x;
}

/// The published table (Dettmers et al. 2023, appendix E). It was computed in single precision from a rounded offset:
/// its last digits are not those of the exact quantiles.
constexpr std::array<float, 16> kNf4 = {
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

struct FloatFormat {
  std::string_view name;
  int exponent_bits;
  int mantissa_bits;
  bool is_default;  // of its width

  int bits() const { return 1 + exponent_bits + mantissa_bits; }
};

constexpr FloatFormat kFloatFormats[] = {
    {"e1m1", 1, 1, true},  {"e2m1", 2, 1, true}, {"e2m2", 2, 2, true}, {"e2m3", 2, 3, true},
    {"e3m2", 3, 2, false}, {"e3m3", 3, 3, true}, {"e4m3", 4, 3, true},
};

Codebook float_codebook(const FloatFormat& format) {
  const int half = 1 << (format.bits() - 1);
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  std::vector<float> values(2 * half);
  for (int code = 0; code < half; ++code) {
    const int exponent = code >> format.mantissa_bits;
    const int mantissa = code & ((1 << format.mantissa_bits) - 1);
    const int significand = exponent == 0 ? mantissa : mantissa + (1 << format.mantissa_bits);
    values[code] = std::ldexp(static_cast<float>(significand), std::max(exponent, 1) - bias - format.mantissa_bits);
  }
  // Of these formats only e4m3 spends a code on NaN.
  if (format.name == "e4m3") values[half - 1] = values[half - 2];
  for (int code = 0; code < half; ++code) values[half + code] = -values[code];
  return one_table(format.bits(), std::move(values));
}

}  // namespace

void validate(const Codebook& codebook, std::string_view what) {
  if (codebook.vector_width == 2) {
    fail(ErrorCode::kUnsupported, "{}: expected one weight a code, found a vector codebook of width 2", what);
  }
  if (codebook.vector_width != 1) {
    fail(ErrorCode::kInvalidFormat, "{}: expected vector width 1 or 2, found {}", what, codebook.vector_width);
  }
  if (codebook.bits < 1 || codebook.bits > kMaxBits) {
    fail(ErrorCode::kInvalidFormat, "{}: expected bits 1..{}, found {}", what, kMaxBits, codebook.bits);
  }
  const int64_t length = int64_t{1} << codebook.bits;
  const auto size = static_cast<int64_t>(codebook.values.size());
  if (codebook.rows < 1 || size % length != 0 || size / length != codebook.rows) {
    fail(ErrorCode::kInvalidFormat, "{}: expected {} x {} values, found {}", what, codebook.rows, length, size);
  }
  for (int64_t i = 0; i < size; ++i) {
    if (!std::isfinite(codebook.values[i])) {
      fail(ErrorCode::kInvalidFormat, "{}: row {}, code {}: expected a finite value, found {}", what, i / length,
           i % length, codebook.values[i]);
    }
  }
}

float codebook_max_magnitude(const Codebook& codebook, bool is_int) {
  if (is_int) return static_cast<float>((1 << (codebook.bits - 1)) - 1);
  float magnitude = 0;
  for (const float value : codebook.values) magnitude = std::max(magnitude, std::abs(value));
  return magnitude;
}

Codebook nf_codebook(int bits) {
  expect_bits("nf", bits, 2);
  if (bits == 4) return one_table(bits, {kNf4.begin(), kNf4.end()});
  // Probabilities evenly spaced from 1/2 to 1 - offset, 2^(bits-1) - 1 steps below zero and one more above it.
  constexpr double kOffset = 0.5 * (1.0 / 32 + 1.0 / 30);
  const int half = 1 << (bits - 1);
  const double largest = normal_quantile(1 - kOffset);
  const auto magnitude = [&](int step, int steps) {
    if (step == steps) return 1.0f;
    return static_cast<float>(normal_quantile(0.5 + (0.5 - kOffset) * step / steps) / largest);
  };
  std::vector<float> values(2 * half, 0.0f);
  for (int step = 1; step < half; ++step) values[half - 1 - step] = -magnitude(step, half - 1);
  for (int step = 1; step <= half; ++step) values[half - 1 + step] = magnitude(step, half);
  return one_table(bits, std::move(values));
}

Codebook int_codebook(int bits) {
  expect_bits("int", bits, 2);
  const int half = 1 << (bits - 1);
  std::vector<float> values(2 * half);
  for (int code = 0; code < 2 * half; ++code) values[code] = static_cast<float>(code - half);
  return one_table(bits, std::move(values));
}

Codebook fp_codebook(int bits, std::string_view variant) {
  expect_bits("fp", bits, 3);
  for (const FloatFormat& format : kFloatFormats) {
    if (format.bits() == bits && (variant.empty() ? format.is_default : variant == format.name)) {
      return float_codebook(format);
    }
  }
  fail(ErrorCode::kInvalidArgument, "fp codebook: expected a format of {} bits, found '{}'", bits, variant);
}

Codebook named_codebook(std::string_view name, int bits) {
  if (name == "nf") return nf_codebook(bits);
  if (name == "int") return int_codebook(bits);
  if (name == "fp") return fp_codebook(bits);
  for (const FloatFormat& format : kFloatFormats) {
    if (name == format.name) return fp_codebook(bits, name);
  }
  fail(ErrorCode::kInvalidArgument, "codebook: expected one of {}, found '{}'", fmt::join(codebook_names(), ", "),
       name);
}

std::vector<std::string_view> codebook_names() {
  std::vector<std::string_view> names = {"nf", "int", "fp"};
  for (const FloatFormat& format : kFloatFormats) names.push_back(format.name);
  return names;
}

}  // namespace flute
