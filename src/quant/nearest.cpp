#include "quant/nearest.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/nearest.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

// Plain loops, compiled once for each instruction set that Highway knows.
HWY_BEFORE_NAMESPACE();
namespace flute {
namespace HWY_NAMESPACE {

uint32_t absmax_bits_loop(const float* values, size_t count) {
  uint32_t result = 0;
  for (size_t i = 0; i < count; ++i) {
    // Magnitudes order as their bits do: NaN above infinity above all others.
    const uint32_t magnitude = std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu;
    result = result < magnitude ? magnitude : result;
  }
  return result;
}

/// The interval of each t: the upper four bits (all of them in a small table) by counting the thresholds below, which
/// needs no table lookup, the others by bisection.
template <int coarse_bits>
void find_intervals(const NearestTable& table, const float* t, size_t count, uint32_t* interval) {
  constexpr uint32_t kCoarse = (1u << coarse_bits) - 1;
  const uint32_t step = 1u << (table.bits - coarse_bits);
  float coarse[kCoarse];
  for (uint32_t j = 0; j < kCoarse; ++j) coarse[j] = table.thresholds[(j + 1) * step - 1];
  for (size_t i = 0; i < count; ++i) {
    uint32_t below = 0;
    for (uint32_t j = 0; j < kCoarse; ++j) below += t[i] >= coarse[j] ? 1 : 0;
    interval[i] = below * step;
  }
  for (uint32_t half = step / 2; half > 0; half /= 2) {
    const float* thresholds = table.thresholds.data() + half - 1;
    for (size_t i = 0; i < count; ++i) interval[i] += t[i] >= thresholds[interval[i]] ? half : 0;
  }
}

void nearest_codes_loop(const NearestTable& table, const float* values, float scale, size_t count, uint8_t* codes) {
  constexpr size_t kBlock = 256;  // a group, or a piece of a long one
  float t[kBlock];
  uint32_t interval[kBlock];
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t size = count - begin < kBlock ? count - begin : kBlock;
    for (size_t i = 0; i < size; ++i) t[i] = values[begin + i] / scale;
    switch (table.bits) {
      case 1:
        find_intervals<1>(table, t, size, interval);
        break;
      case 2:
        find_intervals<2>(table, t, size, interval);
        break;
      case 3:
        find_intervals<3>(table, t, size, interval);
        break;
      default:
        find_intervals<4>(table, t, size, interval);
        break;
    }
    if (table.ascending) {
      for (size_t i = 0; i < size; ++i) codes[begin + i] = static_cast<uint8_t>(interval[i]);
    } else {
      for (size_t i = 0; i < size; ++i) codes[begin + i] = table.codes[interval[i]];
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flute
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flute {

HWY_EXPORT(absmax_bits_loop);
HWY_EXPORT(nearest_codes_loop);

uint32_t absmax_bits(const float* values, size_t count) {
  return HWY_DYNAMIC_DISPATCH(absmax_bits_loop)(values, count);
}

void nearest_codes(const NearestTable& table, const float* values, float scale, size_t count, uint8_t* codes) {
  HWY_DYNAMIC_DISPATCH(nearest_codes_loop)(table, values, scale, count, codes);
}

NearestTable::NearestTable(std::span<const float> values) : bits(std::countr_zero(values.size())), ascending(true) {
  std::array<int, 256> order{};
  const auto end = order.begin() + static_cast<std::ptrdiff_t>(values.size());
  for (size_t code = 0; code < values.size(); ++code) order[code] = static_cast<int>(code);
  std::stable_sort(order.begin(), end, [&](int a, int b) { return values[a] < values[b]; });
  const auto last = std::unique(order.begin(), end, [&](int a, int b) { return values[a] == values[b]; });

  const auto intervals = static_cast<size_t>(last - order.begin());
  thresholds.fill(std::numeric_limits<float>::quiet_NaN());
  codes.fill(0);
  for (size_t i = 0; i < intervals; ++i) {
    codes[i] = static_cast<uint8_t>(order[i]);
    ascending = ascending && order[i] == static_cast<int>(i);
    if (i == 0) continue;
    const double boundary = 0.5 * (double{values[order[i - 1]]} + double{values[order[i]]});
    auto threshold = static_cast<float>(boundary);
    const bool belongs_below = double{threshold} == boundary && order[i - 1] < order[i];
    if (double{threshold} < boundary || belongs_below) {
      threshold = std::nextafter(threshold, std::numeric_limits<float>::infinity());
    }
    thresholds[i - 1] = threshold;
  }
}

}  // namespace flute
#endif  // HWY_ONCE
