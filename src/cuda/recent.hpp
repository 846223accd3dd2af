// What was worked out for earlier calls: a plan for many tokens takes microseconds, as long as the call itself.
#pragma once

#include <cstddef>
#include <unordered_map>
#include <utility>

#include "cuda/plan.hpp"

namespace flute::cuda {

/// What a plan follows from.
struct PlanKey {
  Shape shape;
  Format format;
  int device = 0;  ///< its number: limits are the device's
  bool operator==(const PlanKey&) const = default;
};

struct PlanKeyHash {
  size_t operator()(const PlanKey& key) const {
    size_t hash = 0;
    const auto add = [&](int value) { hash = (hash ^ static_cast<size_t>(value)) * 0x9e3779b97f4a7c15; };
    for (const int value : {key.shape.m, key.shape.n, key.shape.k, key.shape.segments, key.format.bits,
                            key.format.group_size, static_cast<int>(key.format.bf16), key.device}) {
      add(value);
    }
    for (const int row : key.shape.segment_row) add(row);
    return hash ^ hash >> 32;
  }
};

/// Values by PlanKey. For one thread: none waits for another. Once there are kMost, all are forgotten.
template <typename Value>
class Recent {
 public:
  static constexpr size_t kMost = 256;

  /// The value of the key; make() where it is not known. Valid until the next call.
  template <typename Make>
  const Value& get(const PlanKey& key, const Make& make) {
    const auto known = values_.find(key);
    if (known != values_.end()) return known->second;
    Value made = make();
    if (values_.size() >= kMost) values_.clear();
    return values_.emplace(key, std::move(made)).first->second;
  }

 private:
  std::unordered_map<PlanKey, Value, PlanKeyHash> values_;
};

}  // namespace flute::cuda
