#include "model/model.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <utility>

#include "base/fail.hpp"
#include "io/checkpoint.hpp"
#include "model/kernels.hpp"
#include "model/linear.hpp"
#include "model/rope.hpp"

namespace flute::model {
namespace {

using Clock = std::chrono::steady_clock;

// Tokens that run through the blocks together: enough for the multiplies to be bound by arithmetic, few enough that the
// activations stay small beside the weights.
constexpr int64_t kChunkTokens = 512;
// Logits that log_probabilities holds at once: 64 MB.
constexpr int64_t kMaxLogits = int64_t{1} << 24;
// Rows of a parallel_for body, and the number of rows from which it pays to share them.
constexpr int64_t kRowsPerTask = 8;
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

struct Block {
  std::vector<float> attention_norm, mlp_norm;            // before a part
  std::vector<float> attention_post_norm, mlp_post_norm;  // behind it (Gemma-2; else empty)
  Linear qkv, output, gate_up, down;
};

/// What a chunk of tokens needs on its way, [tokens, ...] each.
struct Activations {
  explicit Activations(const io::ModelConfig& config, int64_t qkv_width, int64_t tokens)
      : hidden(allocate(tokens * config.hidden_size)),
        normed(allocate(tokens * config.hidden_size)),
        qkv(allocate(tokens * qkv_width)),
        attention(allocate(tokens * config.num_heads * config.head_dim)),
        gate_up(allocate(tokens * 2 * config.intermediate_size)) {}
  static std::unique_ptr<float[]> allocate(int64_t count) {
    return std::make_unique_for_overwrite<float[]>(static_cast<size_t>(count));
  }
  std::unique_ptr<float[]> hidden, normed, qkv, attention, gate_up;
};

}  // namespace

struct Model::Impl {
  io::ModelConfig config;
  io::Checkpoint checkpoint;  // the embedding is read from its mapped file
  ThreadPool* threads;
  Embedding embedding;
  float embedding_scale = 1;
  std::vector<Block> blocks;
  std::vector<float> final_norm;
  Linear output_head;
  std::vector<float> rope;
  mutable std::atomic<int64_t> multiply_time{0};  // nanoseconds

  Impl(const std::filesystem::path& folder, ThreadPool* pool);
  std::vector<float> read_norm(const std::string& name) const;
  Block read_block(int64_t layer) const;

  void check(std::span<const int32_t> ids, const KvCache& cache) const;
  void multiply(const Linear& linear, const float* x, int64_t ldx, int64_t m, float* y) const;
  template <typename Body>
  void for_rows(int64_t m, const Body& body) const;
  template <typename Use>
  void run(std::span<const int32_t> ids, KvCache& cache, const Use& use) const;
  void attention(int64_t layer, int64_t m, const RopeTable& rope_table, KvCache& cache, Activations& a) const;
  void add_part(const float* part, const std::vector<float>& post_norm, int64_t m, float* hidden) const;
  void logits(float* hidden, int64_t m, float* out) const;
};

Model::Impl::Impl(const std::filesystem::path& folder, ThreadPool* pool)
    : config(io::read_model_config(folder)), checkpoint(io::Checkpoint::open(folder)), threads(pool) {
  embedding = Embedding(checkpoint, "model.embed_tokens", config.vocab_size, config.hidden_size);
  if (config.architecture == io::Architecture::kGemma2) {
    embedding_scale = std::sqrt(static_cast<float>(config.hidden_size));
  }
  for (int64_t layer = 0; layer < config.num_layers; ++layer) blocks.push_back(read_block(layer));
  final_norm = read_norm("model.norm");
  // A tied head that is quantized has a copy of its own.
  const bool own_head = !config.tie_word_embeddings || checkpoint.find("lm_head.weight_packed") != nullptr;
  const LayerName head_name{own_head ? "lm_head" : "model.embed_tokens", config.vocab_size};
  output_head = Linear(checkpoint, std::span(&head_name, 1), config.hidden_size, false, threads);
  rope = rope_frequencies(config.rope, config.head_dim);
}

std::vector<float> Model::Impl::read_norm(const std::string& name) const {
  std::vector<float> weight = read_vector(checkpoint, name + ".weight", config.hidden_size);
  if (config.architecture == io::Architecture::kGemma2) {
    for (float& value : weight) value += 1.0F;
  }
  return weight;
}

Block Model::Impl::read_block(int64_t layer) const {
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
  block.attention_norm = read_norm(prefix + "input_layernorm");
  if (config.architecture == io::Architecture::kGemma2) {
    block.attention_post_norm = read_norm(prefix + "post_attention_layernorm");
    block.mlp_norm = read_norm(prefix + "pre_feedforward_layernorm");
    block.mlp_post_norm = read_norm(prefix + "post_feedforward_layernorm");
  } else {
    block.mlp_norm = read_norm(prefix + "post_attention_layernorm");
  }
  block.qkv = Linear(checkpoint, qkv, config.hidden_size, config.attention_bias, threads);
  block.output = Linear(checkpoint, output, query_width, config.attention_bias, threads);
  block.gate_up = Linear(checkpoint, gate_up, config.hidden_size, config.mlp_bias, threads);
  block.down = Linear(checkpoint, down, config.intermediate_size, config.mlp_bias, threads);
  return block;
}

void Model::Impl::check(std::span<const int32_t> ids, const KvCache& cache) const {
  if (ids.empty()) fail(ErrorCode::kInvalidArgument, "model input: expected at least one token, found none");
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= config.vocab_size) {
      fail(ErrorCode::kInvalidArgument, "model input: token {}: expected an id from 0 to {}, found {}", i,
           config.vocab_size - 1, ids[i]);
    }
  }
  const int64_t room = cache.capacity() - cache.size();
  if (static_cast<int64_t>(ids.size()) > room) {
    fail(ErrorCode::kInvalidArgument,
         "model input: expected at most the {} tokens for which the cache has room, found {}", room, ids.size());
  }
}

void Model::Impl::multiply(const Linear& linear, const float* x, int64_t ldx, int64_t m, float* y) const {
  const Stopwatch stopwatch(multiply_time);
  linear.multiply(x, ldx, m, y, threads);
}

template <typename Body>
void Model::Impl::for_rows(int64_t m, const Body& body) const {
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

/// hidden += part, normed first where the architecture says so.
void Model::Impl::add_part(const float* part, const std::vector<float>& post_norm, int64_t m, float* hidden) const {
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

void Model::Impl::attention(int64_t layer, int64_t m, const RopeTable& rope_table, KvCache& cache,
                            Activations& a) const {
  const int64_t head_dim = config.head_dim;
  const int64_t heads = config.num_heads, kv_heads = config.num_kv_heads;
  const int64_t width = blocks[static_cast<size_t>(layer)].qkv.n();
  const int64_t first = cache.size();
  for_rows(m, [&](int64_t row) {
    float* queries = a.qkv.get() + row * width;
    float* keys = queries + heads * head_dim;
    const float* values = keys + kv_heads * head_dim;
    for (int64_t head = 0; head < heads + kv_heads; ++head) {
      rotate(queries + head * head_dim, rope_table.cosine(row), rope_table.sine(row), head_dim);
    }
    for (int64_t head = 0; head < kv_heads; ++head) {
      cache.store(layer, head, first + row, keys + head * head_dim, values + head * head_dim);
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
    tile.keys = cache.keys(layer, kv_head);
    tile.values = cache.values(layer, kv_head);
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

/// Runs `ids` through the blocks, a chunk at a time: `use(first, count, hidden)` gets a chunk's rows [count,
/// hidden_size] and may write to them.
template <typename Use>
void Model::Impl::run(std::span<const int32_t> ids, KvCache& cache, const Use& use) const {
  check(ids, cache);
  const int64_t total = static_cast<int64_t>(ids.size());
  const int64_t width = config.hidden_size, mlp_width = config.intermediate_size;
  const int64_t attention_width = config.num_heads * config.head_dim;
  const float epsilon = static_cast<float>(config.rms_norm_eps);
  Activations a(config, blocks.front().qkv.n(), std::min(total, kChunkTokens));
  float* const hidden = a.hidden.get();
  float* const normed = a.normed.get();
  for (int64_t begin = 0; begin < total; begin += kChunkTokens) {
    const int64_t m = std::min(kChunkTokens, total - begin);
    for_rows(m, [&](int64_t row) {
      embedding.read_row(ids[static_cast<size_t>(begin + row)], hidden + row * width);
      for (int64_t i = 0; i < width; ++i) hidden[row * width + i] *= embedding_scale;
    });
    const RopeTable rope_table(rope, cache.size(), m);
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      const Block& block = blocks[static_cast<size_t>(layer)];
      for_rows(m, [&](int64_t row) {
        rms_norm(hidden + row * width, block.attention_norm.data(), epsilon, width, normed + row * width);
      });
      multiply(block.qkv, normed, width, m, a.qkv.get());
      attention(layer, m, rope_table, cache, a);
      multiply(block.output, a.attention.get(), attention_width, m, normed);
      add_part(normed, block.attention_post_norm, m, hidden);

      for_rows(m, [&](int64_t row) {
        rms_norm(hidden + row * width, block.mlp_norm.data(), epsilon, width, normed + row * width);
      });
      multiply(block.gate_up, normed, width, m, a.gate_up.get());
      for_rows(m, [&](int64_t row) {
        float* gate = a.gate_up.get() + row * 2 * mlp_width;
        const bool gelu = config.architecture == io::Architecture::kGemma2;
        (gelu ? gelu_multiply : silu_multiply)(gate, gate + mlp_width, mlp_width, gate);
      });
      multiply(block.down, a.gate_up.get(), 2 * mlp_width, m, normed);
      add_part(normed, block.mlp_post_norm, m, hidden);
    }
    cache.advance(m);
    use(begin, m, hidden);
  }
}

/// The head: logits [m, vocab_size] of rows that come out of the blocks, which it norms in place.
void Model::Impl::logits(float* hidden, int64_t m, float* out) const {
  const int64_t width = config.hidden_size;
  for_rows(m, [&](int64_t row) {
    float* x = hidden + row * width;
    rms_norm(x, final_norm.data(), static_cast<float>(config.rms_norm_eps), width, x);
  });
  multiply(output_head, hidden, width, m, out);
  if (config.final_logit_softcapping <= 0) return;
  for_rows(m, [&](int64_t row) {
    soft_cap(out + row * config.vocab_size, config.vocab_size, static_cast<float>(config.final_logit_softcapping));
  });
}

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

Model Model::load(const std::filesystem::path& folder, ThreadPool* threads) {
  return Model(std::make_unique<Impl>(folder, threads));
}

const io::ModelConfig& Model::config() const { return impl_->config; }

size_t Model::weight_bytes() const {
  size_t bytes = impl_->output_head.bytes() + impl_->final_norm.size() * sizeof(float);
  for (const Block& block : impl_->blocks) {
    for (const Linear* linear : {&block.qkv, &block.output, &block.gate_up, &block.down}) bytes += linear->bytes();
    for (const auto* norm :
         {&block.attention_norm, &block.mlp_norm, &block.attention_post_norm, &block.mlp_post_norm}) {
      bytes += norm->size() * sizeof(float);
    }
  }
  return bytes;
}

KvCache Model::make_cache(int64_t capacity) const {
  const int64_t most = impl_->config.max_position_embeddings;
  if (capacity < 1 || capacity > most) {
    fail(ErrorCode::kInvalidArgument,
         "context: expected 1 to {} tokens (the model's max_position_embeddings), found {}", most, capacity);
  }
  return KvCache(impl_->config, capacity);
}

std::vector<float> Model::forward(std::span<const int32_t> ids, KvCache& cache, Logits which) const {
  const int64_t vocab = impl_->config.vocab_size, width = impl_->config.hidden_size;
  const int64_t total = static_cast<int64_t>(ids.size());
  std::vector<float> logits;
  impl_->run(ids, cache, [&](int64_t first, int64_t count, float* hidden) {
    if (logits.empty()) logits.resize(static_cast<size_t>(vocab * (which == Logits::kAll ? total : 1)));
    if (which == Logits::kAll) {
      impl_->logits(hidden, count, logits.data() + first * vocab);
    } else if (first + count == total) {
      impl_->logits(hidden + (count - 1) * width, 1, logits.data());
    }
  });
  return logits;
}

std::vector<double> Model::log_probabilities(std::span<const int32_t> ids, KvCache& cache) const {
  const int64_t vocab = impl_->config.vocab_size, width = impl_->config.hidden_size;
  const int64_t predictions = static_cast<int64_t>(ids.size()) - 1;
  const int64_t step = std::clamp<int64_t>(kMaxLogits / vocab, 1, kChunkTokens);
  std::vector<double> result(static_cast<size_t>(std::max<int64_t>(predictions, 0)));
  const auto logits = Activations::allocate(std::min(step, predictions + 1) * vocab);
  impl_->run(ids, cache, [&](int64_t first, int64_t count, float* hidden) {
    const int64_t rows = std::min(count, predictions - first);  // nothing follows the last token
    for (int64_t begin = 0; begin < rows; begin += step) {
      const int64_t m = std::min(step, rows - begin);
      impl_->logits(hidden + begin * width, m, logits.get());
      impl_->for_rows(m, [&](int64_t row) {
        const float* of_row = logits.get() + row * vocab;
        const size_t index = static_cast<size_t>(first + begin + row);
        result[index] = static_cast<double>(of_row[ids[index + 1]]) - log_sum_exp(of_row, vocab);
      });
    }
  });
  return result;
}

double Model::multiply_seconds() const { return static_cast<double>(impl_->multiply_time.load()) * 1e-9; }

}  // namespace flute::model
