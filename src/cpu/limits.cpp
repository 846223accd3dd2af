// What an instruction set could reach at most on this machine: the measures that `flute bench` holds its times against.
#include "cpu/kernel_sets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/limits.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace flute::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

uint32_t read_lines(const std::byte* data, size_t bytes) {
  const hn::CappedTag<uint32_t, 16> d;
  // Eight parts side by side: a core's prefetchers follow each, so that more lines are on their way at once. The
  // fastest of 1, 2, 4, 8 and 16 parts, with and without fetching ahead by instructions, on the machine of
  // docs/cpu-kernels.md.
  constexpr size_t kParts = 8, kLineWords = 16;
  const size_t part = bytes / sizeof(uint32_t) / kParts / kLineWords * kLineWords;
  const auto* words = reinterpret_cast<const uint32_t*>(data);
  hn::Vec<decltype(d)> sums[kParts];
  for (auto& sum : sums) sum = hn::Zero(d);
  for (size_t i = 0; i < part; i += kLineWords) {
    for (size_t p = 0; p < kParts; ++p) {
      for (size_t v = 0; v < kLineWords; v += hn::MaxLanes(d)) {
        sums[p] = hn::Xor(sums[p], hn::LoadU(d, words + p * part + i + v));
      }
    }
  }
  for (size_t p = 1; p < kParts; ++p) sums[0] = hn::Xor(sums[0], sums[p]);
  alignas(64) uint32_t lanes[16];
  hn::Store(sums[0], d, lanes);
  uint32_t result = 0;
  for (size_t i = 0; i < hn::MaxLanes(d); ++i) result ^= lanes[i];
  return result;
}

float multiply_add_chains(int64_t rounds) {
  const hn::CappedTag<float, 16> d;
  using F = hn::Vec<decltype(d)>;
  constexpr int kChains = 12;  // more than latency (4) times units (2), fewer than 16 registers
  F sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = hn::Set(d, static_cast<float>(c));
  const F factor = hn::Set(d, 0.5f), addend = hn::Set(d, 1.0f);
  for (int64_t i = 0; i < rounds; ++i) {
    for (F& sum : sums) sum = hn::MulAdd(sum, factor, addend);
  }
  for (int c = 1; c < kChains; ++c) sums[0] = hn::Add(sums[0], sums[c]);
  return hn::GetLane(sums[0]);
}

void fill_limits(Kernels& table) {
  table.read = read_lines;
  table.multiply_add_chains = multiply_add_chains;
  table.chain_flops = 2 * 12 * static_cast<int>(hn::MaxLanes(hn::CappedTag<float, 16>()));
}

}  // namespace HWY_NAMESPACE
}  // namespace flute::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flute::cpu {
FillKernels limit_kernels(int64_t target) { return FLUTE_FOR_TARGET(target, fill_limits); }
}  // namespace flute::cpu
#endif
