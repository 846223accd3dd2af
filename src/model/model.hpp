#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "flute/gemm.hpp"
#include "io/model_config.hpp"
#include "model/tokenizer.hpp"

namespace flute::model {

/// The keys and values of one sequence.
class KvCache;

/// A Llama-3 or Gemma-2 model ready to run, from a quantized or a plain checkpoint. Activations and sums are fp32.
class Model {
 public:
  /// Loads config.json and weights from `folder`. Throws kUnsupported for other architectures.
  static Model load(const std::filesystem::path& folder, ThreadPool* threads);
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const io::ModelConfig& config() const;
  size_t weight_bytes() const;  ///< as held in memory

  /// A cache for up to `capacity` tokens.
  std::unique_ptr<KvCache, void (*)(KvCache*)> make_cache(int64_t capacity) const;

  /// Runs `ids` after what `cache` holds and appends to it. Which positions' logits are wanted:
  enum class Logits { kLast, kAll };
  /// Returns logits [rows, vocab_size], rows = 1 or ids.size(). Throws kInvalidArgument on an id out of range or when
  /// the cache would overflow.
  std::vector<float> forward(std::span<const int32_t> ids, KvCache& cache, Logits which) const;

  /// Seconds spent since load in multiplies and in everything, for the overhead figure of `flute generate --json`.
  struct Times { double multiply = 0, total = 0; };
  Times times() const;

 private:
  struct Impl;
  explicit Model(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// What to sample with. temperature 0: the most probable token.
struct SamplingOptions {
  float temperature = 0.0f;
  float top_p = 1.0f;
  int top_k = 0;       ///< 0: all
  uint64_t seed = 0;
};

struct GenerationResult {
  std::vector<int32_t> ids;  ///< prompt and new ids, eos included when it was produced
  int64_t prompt_tokens = 0;
  int64_t new_tokens = 0;
  double prompt_seconds = 0;
  double decode_seconds = 0;  ///< of new_tokens - 1 forward passes
};

/// Generates up to `max_new_tokens`, stopping after any of `eos` (generation_config's or config's); `on_token` streams.
GenerationResult generate(const Model& model, std::span<const int32_t> prompt, int64_t max_new_tokens,
                          const SamplingOptions& sampling, std::span<const int32_t> eos,
                          const std::function<void(int32_t)>& on_token = {});

struct PerplexityResult {
  double perplexity = 0;
  int64_t predictions = 0;
  double seconds = 0;
};

/// The definition of reference.json: documents (separated by a line holding one NUL character) each encoded with bos
/// prepended and eos appended, concatenated, cut into windows of `window` tokens (the last partial one dropped),
/// window-1 predictions each. exp of the mean negative log likelihood, in double.
PerplexityResult perplexity(const Model& model, const Tokenizer& tokenizer, std::string_view text, int64_t window,
                            const std::function<void(int64_t done, int64_t total, double running)>& progress = {});

}  // namespace flute::model
