#include "model/blocks.hpp"

#include <chrono>
#include <cmath>

#include "base/fail.hpp"
#include "model/kernels.hpp"

namespace flute::model {
namespace {

using Clock = std::chrono::steady_clock;

// Products (one multiply-add a query head, position and component) below which attention stays on one thread: some 5 us
// of work against the 1-2 us that waking the others takes.
constexpr int64_t kSerialAttention = int64_t{1} << 16;

/// Adds the time it lives to a counter of nanoseconds.
class Stopwatch {
 public:
  explicit Stopwatch(std::atomic<int64_t>& counter) : counter_(counter) {}
  ~Stopwatch() {
    const auto elapsed = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_);
    counter_.fetch_add(elapsed.count(), std::memory_order_relaxed);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  std::atomic<int64_t>& counter_;
  Clock::time_point start_ = Clock::now();
};

}  // namespace

Activations::Activations(const io::ModelConfig& config, int64_t tokens)
    : hidden(allocate(tokens * config.hidden_size)),
      normed(allocate(tokens * config.hidden_size)),
      qkv(allocate(tokens * (config.num_heads + 2 * config.num_kv_heads) * config.head_dim)),
      attention(allocate(tokens * config.num_heads * config.head_dim)),
      gate_up(allocate(tokens * 2 * config.intermediate_size)) {}

Blocks::Blocks(const std::filesystem::path& folder, ThreadPool* pool)
    : config(io::read_model_config(folder)), checkpoint(io::Checkpoint::open(folder)), threads(pool) {
  embedding = Embedding(checkpoint, "model.embed_tokens", config.vocab_size, config.hidden_size);
  if (config.architecture == io::Architecture::kGemma2) {
    embedding_scale = std::sqrt(static_cast<float>(config.hidden_size));
  }
  rope = rope_frequencies(config.rope, config.head_dim);
}

std::vector<float> Blocks::read_norm(const std::string& name, const ReplacedTensors* replaced) const {
  std::vector<float> weight = read_vector(checkpoint, name + ".weight", config.hidden_size);
  if (replaced != nullptr && replaced->contains(name + ".weight")) {
    const io::TensorView& tensor = checkpoint.at(name + ".weight");
    convert_to_f32(replaced->find(name + ".weight")->second.data.data(),
                   io::float_dtype(tensor, checkpoint.file_of(tensor.name)), weight.data(), weight.size());
  }
  if (config.architecture == io::Architecture::kGemma2) {
    for (float& value : weight) value += 1.0F;
  }
  return weight;
}

Block Blocks::read_block(int64_t layer, const QuantizedBlock* quantized) const {
  const PackedLayers* const layers = quantized != nullptr ? &quantized->layers : nullptr;
  const ReplacedTensors* const tensors = quantized != nullptr ? &quantized->tensors : nullptr;
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  const int64_t query_width = config.num_heads * config.head_dim;
  const int64_t kv_width = config.num_kv_heads * config.head_dim;
  const LayerName qkv[] = {{prefix + "self_attn.q_proj", query_width},
                           {prefix + "self_attn.k_proj", kv_width},
                           {prefix + "self_attn.v_proj", kv_width}};
  const LayerName output[] = {{prefix + "self_attn.o_proj", config.hidden_size}};
  const LayerName gate_up[] = {{prefix + "mlp.gate_proj", config.intermediate_size},
                               {prefix + "mlp.up_proj", config.intermediate_size}};
  const LayerName down[] = {{prefix + "mlp.down_proj", config.hidden_size}};
  Block block;
  block.attention_norm = read_norm(prefix + "input_layernorm", tensors);
  if (config.architecture == io::Architecture::kGemma2) {
    block.attention_post_norm = read_norm(prefix + "post_attention_layernorm", tensors);
    block.mlp_norm = read_norm(prefix + "pre_feedforward_layernorm", tensors);
    block.mlp_post_norm = read_norm(prefix + "post_feedforward_layernorm", tensors);
  } else {
    block.mlp_norm = read_norm(prefix + "post_attention_layernorm", tensors);
  }
  block.qkv = Linear(checkpoint, qkv, config.hidden_size, config.attention_bias, threads, layers);
  block.output = Linear(checkpoint, output, query_width, config.attention_bias, threads, layers);
  block.gate_up = Linear(checkpoint, gate_up, config.hidden_size, config.mlp_bias, threads, layers);
  block.down = Linear(checkpoint, down, config.intermediate_size, config.mlp_bias, threads, layers);
  return block;
}

Head Blocks::read_head(const PackedLayers* quantized) const {
  // A tied head that is quantized has a copy of its own.
  const bool own = !config.tie_word_embeddings || checkpoint.find("lm_head.weight_packed") != nullptr ||
                   (quantized != nullptr && quantized->contains("lm_head"));
  const LayerName name{own ? "lm_head" : "model.embed_tokens", config.vocab_size};
  return {read_norm("model.norm"),
          Linear(checkpoint, std::span(&name, 1), config.hidden_size, false, threads, quantized)};
}

void Blocks::check(std::span<const int32_t> ids) const {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= config.vocab_size) {
      fail(ErrorCode::kInvalidArgument, "model input: token {}: expected an id from 0 to {}, found {}", i,
           config.vocab_size - 1, ids[i]);
    }
  }
}

void Blocks::multiply(const Linear& linear, const float* x, int64_t ldx, int64_t m, float* y) const {
  const Stopwatch stopwatch(multiply_time);
  linear.multiply(x, ldx, m, y, threads);
}

void Blocks::norm_rows(const float* x, const std::vector<float>& weight, int64_t m, float* y) const {
  const int64_t width = config.hidden_size;
  for_rows(m, [&](int64_t row) {
    rms_norm(x + row * width, weight.data(), static_cast<float>(config.rms_norm_eps), width, y + row * width);
  });
}

/// hidden += part, normed first where the architecture says so.
void Blocks::add_part(const float* part, const std::vector<float>& post_norm, int64_t m, float* hidden) const {
  const int64_t width = config.hidden_size;
  for_rows(m, [&](int64_t row) {
    if (post_norm.empty()) {
      add(hidden + row * width, part + row * width, width);
      return;
    }
    std::vector<float> normed(static_cast<size_t>(width));
    rms_norm(part + row * width, post_norm.data(), static_cast<float>(config.rms_norm_eps), width, normed.data());
    add(hidden + row * width, normed.data(), width);
  });
}

void Blocks::embed(std::span<const int32_t> ids, float* hidden) const {
  const int64_t width = config.hidden_size;
  for_rows(static_cast<int64_t>(ids.size()), [&](int64_t row) {
    embedding.read_row(ids[static_cast<size_t>(row)], hidden + row * width);
    for (int64_t i = 0; i < width; ++i) hidden[row * width + i] *= embedding_scale;
  });
}

void Blocks::norm_for_attention(const Block& block, int64_t m, Activations& a) const {
  norm_rows(a.hidden.get(), block.attention_norm, m, a.normed.get());
}

void Blocks::attend_rows(const Block& block, int64_t layer, int64_t slot, int64_t m, const RopeTable& rope_table,
                         KvCache& cache, Activations& a) const {
  const int64_t head_dim = config.head_dim;
  const int64_t heads = config.num_heads, kv_heads = config.num_kv_heads;
  const int64_t width = block.qkv.n();
  const int64_t first = cache.size();
  multiply(block.qkv, a.normed.get(), config.hidden_size, m, a.qkv.get());
  for_rows(m, [&](int64_t row) {
    float* queries = a.qkv.get() + row * width;
    float* keys = queries + heads * head_dim;
    const float* values = keys + kv_heads * head_dim;
    for (int64_t head = 0; head < heads + kv_heads; ++head) {
      rotate(queries + head * head_dim, rope_table.cosine(row), rope_table.sine(row), head_dim);
    }
    for (int64_t head = 0; head < kv_heads; ++head) {
      cache.store(slot, head, first + row, keys + head * head_dim, values + head * head_dim);
    }
  });

  const bool sliding = config.sliding_layers[static_cast<size_t>(layer)];
  const double scalar = config.query_pre_attn_scalar > 0 ? config.query_pre_attn_scalar : static_cast<double>(head_dim);
  const int64_t shared = heads / kv_heads;  // query heads of one key/value head
  const int64_t tiles = (m * shared + kTileRows - 1) / kTileRows;
  const auto run_tile = [&](int64_t task) {
    const int64_t kv_head = task / tiles;
    const int64_t begin = task % tiles * kTileRows;  // of m * shared rows, a token's heads in a row
    AttentionTile tile;
    tile.rows = static_cast<int>(std::min<int64_t>(kTileRows, m * shared - begin));
    for (int r = 0; r < tile.rows; ++r) {
      const int64_t token = (begin + r) / shared;
      const int64_t head = kv_head * shared + (begin + r) % shared;
      tile.query[r] = a.qkv.get() + token * width + head * head_dim;
      tile.out[r] = a.attention.get() + (token * heads + head) * head_dim;
      tile.end[r] = first + token + 1;
      tile.begin[r] = sliding ? std::max<int64_t>(0, tile.end[r] - config.sliding_window) : 0;
    }
    tile.keys = cache.keys(slot, kv_head);
    tile.values = cache.values(slot, kv_head);
    tile.head_dim = head_dim;
    tile.value_stride = cache.value_stride();
    tile.scale = static_cast<float>(1.0 / std::sqrt(scalar));
    tile.soft_cap = static_cast<float>(config.attn_logit_softcapping);
    const auto scratch = Activations::allocate(attention_scratch(first + m, tile.value_stride));
    tile.scratch = scratch.get();
    attend(tile);
  };
  const bool serial = (first + m) * m * heads * head_dim < kSerialAttention;
  parallel_for(serial ? nullptr : threads, kv_heads * tiles, run_tile);
}

void Blocks::add_attention(const Block& block, int64_t m, Activations& a) const {
  multiply(block.output, a.attention.get(), config.num_heads * config.head_dim, m, a.normed.get());
  add_part(a.normed.get(), block.attention_post_norm, m, a.hidden.get());
}

void Blocks::norm_for_mlp(const Block& block, int64_t m, Activations& a) const {
  norm_rows(a.hidden.get(), block.mlp_norm, m, a.normed.get());
}

void Blocks::activate_mlp(const Block& block, int64_t m, Activations& a) const {
  const int64_t mlp_width = config.intermediate_size;
  multiply(block.gate_up, a.normed.get(), config.hidden_size, m, a.gate_up.get());
  for_rows(m, [&](int64_t row) {
    float* gate = a.gate_up.get() + row * 2 * mlp_width;
    const bool gelu = config.architecture == io::Architecture::kGemma2;
    (gelu ? gelu_multiply : silu_multiply)(gate, gate + mlp_width, mlp_width, gate);
  });
}

void Blocks::add_mlp(const Block& block, int64_t m, Activations& a) const {
  multiply(block.down, a.gate_up.get(), 2 * config.intermediate_size, m, a.normed.get());
  add_part(a.normed.get(), block.mlp_post_norm, m, a.hidden.get());
}

void Blocks::logits(const Head& head, float* hidden, int64_t m, float* out) const {
  norm_rows(hidden, head.norm, m, hidden);
  multiply(head.output, hidden, config.hidden_size, m, out);
  if (config.final_logit_softcapping <= 0) return;
  for_rows(m, [&](int64_t row) {
    soft_cap(out + row * config.vocab_size, config.vocab_size, static_cast<float>(config.final_logit_softcapping));
  });
}

}  // namespace flute::model
