#include "model/model.hpp"

#include <algorithm>
#include <utility>

#include "base/fail.hpp"
#include "model/blocks.hpp"
#include "model/kernels.hpp"

namespace flute::model {
namespace {

// Tokens that run through the blocks together: enough for the multiplies to be bound by arithmetic, few enough that the
// activations stay small beside the weights.
constexpr int64_t kChunkTokens = 512;
// Logits that log_probabilities holds at once: 64 MB.
constexpr int64_t kMaxLogits = int64_t{1} << 24;

}  // namespace

struct Model::Impl : Blocks {
  std::vector<Block> blocks;
  Head head;

  Impl(const std::filesystem::path& folder, ThreadPool* pool);
  void check(std::span<const int32_t> ids, const KvCache& cache) const;
  template <typename Use>
  void run(std::span<const int32_t> ids, KvCache& cache, const Use& use) const;
};

Model::Impl::Impl(const std::filesystem::path& folder, ThreadPool* pool) : Blocks(folder, pool) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) blocks.push_back(read_block(layer));
  head = read_head();
}

void Model::Impl::check(std::span<const int32_t> ids, const KvCache& cache) const {
  if (ids.empty()) fail(ErrorCode::kInvalidArgument, "model input: expected at least one token, found none");
  Blocks::check(ids);
  const int64_t room = cache.capacity() - cache.size();
  if (static_cast<int64_t>(ids.size()) > room) {
    fail(ErrorCode::kInvalidArgument,
         "model input: expected at most the {} tokens for which the cache has room, found {}", room, ids.size());
  }
}

/// Runs `ids` through the blocks, a chunk at a time: `use(first, count, hidden)` gets a chunk's rows [count,
/// hidden_size] and may write to them.
template <typename Use>
void Model::Impl::run(std::span<const int32_t> ids, KvCache& cache, const Use& use) const {
  check(ids, cache);
  const int64_t total = static_cast<int64_t>(ids.size());
  Activations a(config, std::min(total, kChunkTokens));
  for (int64_t begin = 0; begin < total; begin += kChunkTokens) {
    const int64_t m = std::min(kChunkTokens, total - begin);
    embed(ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(m)), a.hidden.get());
    const RopeTable rope_table(rope, cache.size(), m);
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      const Block& block = blocks[static_cast<size_t>(layer)];
      norm_for_attention(block, m, a);
      attend_rows(block, layer, layer, m, rope_table, cache, a);
      add_attention(block, m, a);
      norm_for_mlp(block, m, a);
      activate_mlp(block, m, a);
      add_mlp(block, m, a);
    }
    cache.advance(m);
    use(begin, m, a.hidden.get());
  }
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
  size_t bytes = impl_->head.output.bytes() + impl_->head.norm.size() * sizeof(float);
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
      impl_->logits(impl_->head, hidden, count, logits.data() + first * vocab);
    } else if (first + count == total) {
      impl_->logits(impl_->head, hidden + (count - 1) * width, 1, logits.data());
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
      impl_->logits(impl_->head, hidden + begin * width, m, logits.get());
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
