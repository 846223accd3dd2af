#include "cpu/kernels.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "base/fail.hpp"
#include "cpu/kernel_sets.hpp"

#include <hwy/targets.h>

namespace flute::cpu {
namespace {

struct Set {
  const char* name;
  int64_t target;  ///< Highway's; 0: the baseline of this build
};
constexpr Set kSets[] = {{"avx512", HWY_AVX3}, {"avx2", HWY_AVX2}, {"sse4", HWY_SSE4}, {"neon", HWY_NEON}, {"base", 0}};
constexpr size_t kSetCount = std::size(kSets);

struct Available {
  Kernels tables[kSetCount] = {};
  std::vector<const Kernels*> list;

  Available() {
    const int64_t supported = hwy::SupportedTargets();
    for (size_t i = 0; i < kSetCount; ++i) {
      const Set& set = kSets[i];
      if (set.target != 0 && (supported & set.target) == 0) continue;
      const FillKernels fills[] = {decode_kernels(set.target), panel_kernels(set.target), limit_kernels(set.target)};
      if (std::find(std::begin(fills), std::end(fills), nullptr) != std::end(fills)) continue;
      tables[i].name = set.name;
      for (const FillKernels fill : fills) fill(tables[i]);
      list.push_back(&tables[i]);
    }
  }
};

const Available& available() {
  static const Available all;
  return all;
}

const Kernels* default_kernels() {
  const char* wanted = std::getenv("FLUTE_CPU_TARGET");
  if (wanted == nullptr || *wanted == '\0') return available().list.front();
  std::string names;
  for (const Kernels* set : available().list) {
    if (std::string_view(wanted) == set->name) return set;
    names += (names.empty() ? "" : ", ") + std::string(set->name);
  }
  fail(ErrorCode::kInvalidArgument, "FLUTE_CPU_TARGET: this machine has {}, found '{}'", names, wanted);
}

std::atomic<const Kernels*> chosen_kernels{nullptr};

}  // namespace

std::span<const Kernels* const> available_kernels() { return available().list; }

const Kernels& kernels() {
  const Kernels* set = chosen_kernels.load(std::memory_order_acquire);
  if (set == nullptr) {
    set = default_kernels();
    chosen_kernels.store(set, std::memory_order_release);
  }
  return *set;
}

void choose_kernels(const Kernels* chosen) { chosen_kernels.store(chosen, std::memory_order_release); }

}  // namespace flute::cpu
