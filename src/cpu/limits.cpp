// What an instruction set could reach at most on this machine: the measures that `flute bench` holds its times against.
#include "cpu/kernel_sets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/limits.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace flute::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

uint32_t read_lines(const std::byte* data, size_t bytes) {
  const hn::CappedTag<uint32_t, 16> d;
  using Line = hn::Vec<decltype(d)>;
  constexpr size_t kLine = 64, kVectors = kLine / 4 / hn::MaxLanes(d), kUnroll = 4, kAhead = 2048;
  Line sums[kUnroll * kVectors];
  for (Line& sum : sums) sum = hn::Zero(d);
  const auto* words = reinterpret_cast<const uint32_t*>(data);
  for (size_t i = 0; i + kUnroll * kLine <= bytes; i += kUnroll * kLine) {
    for (size_t u = 0; u < kUnroll; ++u) hwy::Prefetch(data + i + u * kLine + kAhead);
    for (size_t v = 0; v < kUnroll * kVectors; ++v) {
      sums[v] = hn::Xor(sums[v], hn::LoadU(d, words + i / 4 + v * hn::MaxLanes(d)));
    }
  }
  for (size_t v = 1; v < kUnroll * kVectors; ++v) sums[0] = hn::Xor(sums[0], sums[v]);
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
