#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "flute/threads.hpp"
#include "io/model_config.hpp"
#include "model/kv_cache.hpp"
#include "model/sampling.hpp"
#include "model/tokenizer.hpp"

namespace flute::model {

/// A Llama-3 or Gemma-2 model ready to run, from a quantized or a plain checkpoint. Activations and sums are fp32.
/// Any number of threads may use one model, each with a cache of its own.
class Model {
 public:
  /// Loads config.json and weights from `folder`. Throws kUnsupported for other architectures, kInvalidFormat naming
  /// tensor, expected and found where the weights are not what config.json says. `threads` outlives the model.
  static Model load(const std::filesystem::path& folder, ThreadPool* threads);
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const io::ModelConfig& config() const;
  size_t weight_bytes() const;  ///< of matrices, norms and biases, as held in memory; the embedding stays in its file

  /// A cache for up to `capacity` tokens. Throws kInvalidArgument unless that is from 1 to max_position_embeddings.
  KvCache make_cache(int64_t capacity) const;

  /// Which positions' logits are wanted.
  enum class Logits { kLast, kAll };
  /// Runs `ids` (at least one) after what `cache` holds and appends to it. Returns logits [rows, vocab_size], rows = 1
  /// or ids.size(). Throws kInvalidArgument on an id out of range or when the cache would overflow.
  std::vector<float> forward(std::span<const int32_t> ids, KvCache& cache, Logits which) const;

  /// Natural logarithms of the probabilities of ids[1], ids[2], ..., each from all that stands before it in `cache` and
  /// `ids`: ids.size() - 1 numbers. Runs and throws as forward() does, but never holds the logits of all positions.
  std::vector<double> log_probabilities(std::span<const int32_t> ids, KvCache& cache) const;

  /// Seconds spent since load in multiplies, summed over calling threads.
  double multiply_seconds() const;

 private:
  struct Impl;
  explicit Model(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

struct GenerationResult {
  std::vector<int32_t> ids;  ///< prompt and new ids, eos included when it was produced
  int64_t prompt_tokens = 0;
  int64_t new_tokens = 0;
  double prompt_seconds = 0;
  double decode_seconds = 0;  ///< of new_tokens - 1 forward passes
};

/// Generates up to `max_new_tokens`, stopping after any of `eos` or where max_position_embeddings leaves no room;
/// `on_token` streams the new ids. Throws kInvalidArgument on an empty prompt or one that leaves no room.
GenerationResult generate(const Model& model, std::span<const int32_t> prompt, int64_t max_new_tokens,
                          const SamplingOptions& sampling, std::span<const int32_t> eos,
                          const std::function<void(int32_t)>& on_token = {});

struct PerplexityResult {
  double perplexity = 0;
  int64_t predictions = 0;
  double seconds = 0;
};

/// The documents of `text`, which lines holding one NUL character separate.
std::vector<std::string_view> split_documents(std::string_view text);

/// Its documents, each encoded with bos prepended and eos (the first of the config's) appended, concatenated.
std::vector<int32_t> encode_documents(const Tokenizer& tokenizer, const io::ModelConfig& config, std::string_view text);

/// How well `model` predicts `text`: encode_documents, cut into windows of `window` tokens (the last partial one
/// dropped), window - 1 predictions each; exp of the mean negative log likelihood, in double. `progress` is told
/// predictions done, their total, and the perplexity so far. Throws kInvalidArgument on a text shorter than a window
/// and a window below 2 or beyond max_position_embeddings; `text_name` is what a message calls the text.
PerplexityResult perplexity(const Model& model, const Tokenizer& tokenizer, std::string_view text, int64_t window,
                            const std::function<void(int64_t done, int64_t total, double running)>& progress = {},
                            std::string_view text_name = "text");

}  // namespace flute::model
