#include "model/kv_cache.hpp"

#include <algorithm>

#include "base/checked.hpp"
#include "base/fail.hpp"
#include "model/kernels.hpp"

namespace flute::model {
namespace {

int64_t round_up(int64_t value) { return (value + kKeyBlock - 1) / kKeyBlock * kKeyBlock; }

size_t checked_size(int64_t layers, int64_t heads, int64_t positions, int64_t width) {
  const int64_t shape[] = {layers, heads, positions, width, static_cast<int64_t>(sizeof(float))};
  const auto bytes = checked_product(shape);
  if (!bytes) fail(ErrorCode::kInvalidArgument, "key/value cache: {} positions exceed any memory", positions);
  return static_cast<size_t>(*bytes) / sizeof(float);
}

}  // namespace

KvCache::KvCache(const io::ModelConfig& config, int64_t capacity)
    : heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      value_stride_(round_up(config.head_dim)),
      capacity_(capacity),
      padded_capacity_(round_up(capacity)),
      keys_(checked_size(config.num_layers, heads_, padded_capacity_, head_dim_)),
      values_(checked_size(config.num_layers, heads_, padded_capacity_, value_stride_)) {}

void KvCache::store(int64_t layer, int64_t head, int64_t position, const float* key, const float* value) {
  const int64_t row = (layer * heads_ + head) * padded_capacity_;
  float* keys = keys_.data() + (row + position / kKeyBlock * kKeyBlock) * head_dim_ + position % kKeyBlock;
  for (int64_t d = 0; d < head_dim_; ++d) keys[d * kKeyBlock] = key[d];
  std::copy_n(value, head_dim_, values_.data() + (row + position) * value_stride_);
}

const float* KvCache::keys(int64_t layer, int64_t head) const {
  return keys_.data() + (layer * heads_ + head) * padded_capacity_ * head_dim_;
}

const float* KvCache::values(int64_t layer, int64_t head) const {
  return values_.data() + (layer * heads_ + head) * padded_capacity_ * value_stride_;
}

}  // namespace flute::model
