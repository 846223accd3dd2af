#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "flute/threads.hpp"
#include "io/checkpoint.hpp"
#include "io/model_config.hpp"
#include "model/kv_cache.hpp"
#include "model/linear.hpp"
#include "model/rope.hpp"

namespace flute::model {

struct Block {
  std::vector<float> attention_norm, mlp_norm;            // before a part
  std::vector<float> attention_post_norm, mlp_post_norm;  // behind it (Gemma-2; else empty)
  Linear qkv, output, gate_up, down;
};

/// What makes logits of the rows that come out of the blocks.
struct Head {
  std::vector<float> norm;
  Linear output;
};

/// What a chunk of tokens needs on its way, [tokens, ...] each.
struct Activations {
  explicit Activations(const io::ModelConfig& config, int64_t tokens);
  static std::unique_ptr<float[]> allocate(int64_t count) {
    return std::make_unique_for_overwrite<float[]>(static_cast<size_t>(count));
  }
  std::unique_ptr<float[]> hidden, normed, qkv, attention, gate_up;
};

/// What a model does from ids to the rows that its head takes, one step of a block at a time: what a block's layers
/// multiply with can be looked at, and a block can be exchanged.
struct Blocks {
  io::ModelConfig config;
  io::Checkpoint checkpoint;  // the embedding is read from its mapped file
  ThreadPool* threads;
  Embedding embedding;
  float embedding_scale = 1;
  std::vector<float> rope;
  mutable std::atomic<int64_t> multiply_time{0};  // nanoseconds

  Blocks(const std::filesystem::path& folder, ThreadPool* pool);
  // What is in `replaced` or `quantized` is taken from there.
  std::vector<float> read_norm(const std::string& name, const ReplacedTensors* replaced = nullptr) const;
  Block read_block(int64_t layer, const QuantizedBlock* quantized = nullptr) const;
  Head read_head(const PackedLayers* quantized = nullptr) const;

  /// Throws kInvalidArgument on an id out of range.
  void check(std::span<const int32_t> ids) const;
  void multiply(const Linear& linear, const float* x, int64_t ldx, int64_t m, float* y) const;
  template <typename Body>
  void for_rows(int64_t m, const Body& body) const;
  void norm_rows(const float* x, const std::vector<float>& weight, int64_t m, float* y) const;

  // The steps, in this order, on the first m rows of `a`. A block's cache is that of layer `slot`.
  void embed(std::span<const int32_t> ids, float* hidden) const;
  void norm_for_attention(const Block& block, int64_t m, Activations& a) const;  ///< hidden -> normed
  /// normed -> attention; rope_table is that of the rows' positions, which follow what the cache holds.
  void attend_rows(const Block& block, int64_t layer, int64_t slot, int64_t m, const RopeTable& rope_table,
                   KvCache& cache, Activations& a) const;
  void add_attention(const Block& block, int64_t m, Activations& a) const;  ///< hidden += of attention
  void norm_for_mlp(const Block& block, int64_t m, Activations& a) const;   ///< hidden -> normed
  /// normed -> gate_up, whose first intermediate_size of 2 * intermediate_size columns are the down projection's input.
  void activate_mlp(const Block& block, int64_t m, Activations& a) const;
  void add_mlp(const Block& block, int64_t m, Activations& a) const;  ///< hidden += of gate_up
  /// Logits [m, vocab_size] of rows that come out of the blocks, which are normed in place.
  void logits(const Head& head, float* hidden, int64_t m, float* out) const;

 private:
  void add_part(const float* part, const std::vector<float>& post_norm, int64_t m, float* hidden) const;
};

/// Rows of a parallel_for body, and the number of rows from which it pays to share them.
constexpr int64_t kRowsPerTask = 8;

template <typename Body>
void Blocks::for_rows(int64_t m, const Body& body) const {
  const auto run_rows = [&](int64_t task) {
    const int64_t end = std::min(m, (task + 1) * kRowsPerTask);
    for (int64_t row = task * kRowsPerTask; row < end; ++row) body(row);
  };
  if (m <= kRowsPerTask) {
    run_rows(0);
  } else {
    parallel_for(threads, (m + kRowsPerTask - 1) / kRowsPerTask, run_rows);
  }
}

}  // namespace flute::model
