#include <algorithm>
#include <chrono>

#include "base/fail.hpp"
#include "model/model.hpp"

namespace flute::model {

GenerationResult generate(const Model& model, std::span<const int32_t> prompt, int64_t max_new_tokens,
                          const SamplingOptions& sampling, std::span<const int32_t> eos,
                          const std::function<void(int32_t)>& on_token) {
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;
  GenerationResult result;
  result.ids.assign(prompt.begin(), prompt.end());
  result.prompt_tokens = static_cast<int64_t>(prompt.size());
  const int64_t most = model.config().max_position_embeddings;
  if (prompt.empty() || result.prompt_tokens > most) {
    fail(ErrorCode::kInvalidArgument, "prompt: expected 1 to {} tokens (the model's max_position_embeddings), found {}",
         most, prompt.size());
  }
  if (max_new_tokens <= 0) return result;
  // The last new token is not run, so it needs no position.
  const int64_t new_tokens = std::min(max_new_tokens, most - result.prompt_tokens + 1);
  KvCache cache = model.make_cache(result.prompt_tokens + new_tokens - 1);
  Sampler sampler(sampling);

  const auto start = Clock::now();
  std::vector<float> logits = model.forward(prompt, cache, Model::Logits::kLast);
  const auto decode_start = Clock::now();
  result.prompt_seconds = Seconds(decode_start - start).count();
  for (;;) {
    const int32_t id = sampler.next(logits);
    result.ids.push_back(id);
    ++result.new_tokens;
    if (on_token) on_token(id);
    if (result.new_tokens == new_tokens || std::find(eos.begin(), eos.end(), id) != eos.end()) break;
    logits = model.forward(std::span(&id, 1), cache, Model::Logits::kLast);
  }
  result.decode_seconds = Seconds(Clock::now() - decode_start).count();
  return result;
}

}  // namespace flute::model
