#pragma once
#include <cstdint>
#include <vector>

#include "io/model_config.hpp"

namespace flute::model {

/// The keys and values of one sequence, fp32, after RoPE. Layers with a sliding window keep all positions as well.
class KvCache {
 public:
  /// Room for `capacity` positions; Model::make_cache checks it.
  KvCache(const io::ModelConfig& config, int64_t capacity);
  /// For one block, whose layer is 0.
  static KvCache of_one_block(io::ModelConfig config, int64_t capacity) {
    config.num_layers = 1;
    return {config, capacity};
  }

  int64_t size() const { return size_; }          ///< positions held
  int64_t capacity() const { return capacity_; }  ///< positions there is room for
  void clear() { size_ = 0; }                     ///< forgets all of them

  /// Puts the key and the value [head_dim] of one position and head in place. Different positions and heads may be
  /// stored at the same time.
  void store(int64_t layer, int64_t head, int64_t position, const float* key, const float* value);
  /// Positions up to size() + count now count as held.
  void advance(int64_t count) { size_ += count; }

  const float* keys(int64_t layer, int64_t head) const;    ///< [blocks, head_dim, kKeyBlock]
  const float* values(int64_t layer, int64_t head) const;  ///< [positions, value_stride()]
  int64_t value_stride() const { return value_stride_; }   ///< head_dim rounded up to a multiple of 16

 private:
  int64_t heads_, head_dim_, value_stride_, capacity_, padded_capacity_;
  int64_t size_ = 0;
  std::vector<float> keys_, values_;  // [layers, heads, ...]
};

}  // namespace flute::model
