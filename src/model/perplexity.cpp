#include <chrono>
#include <cmath>

#include "base/fail.hpp"
#include "model/model.hpp"

namespace flute::model {

std::vector<std::string_view> split_documents(std::string_view text) {
  constexpr std::string_view kSeparator("\n\0\n", 3);
  std::vector<std::string_view> documents;
  for (;;) {
    const size_t end = text.find(kSeparator);
    documents.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return documents;
    text.remove_prefix(end + kSeparator.size());
  }
}

std::vector<int32_t> encode_documents(const Tokenizer& tokenizer, const io::ModelConfig& config,
                                      std::string_view text) {
  std::vector<int32_t> ids;
  for (const std::string_view document : split_documents(text)) {
    const std::vector<int32_t> encoded = tokenizer.encode(document, false);
    if (config.bos_token_id >= 0) ids.push_back(config.bos_token_id);
    ids.insert(ids.end(), encoded.begin(), encoded.end());
    if (!config.eos_token_ids.empty()) ids.push_back(config.eos_token_ids.front());
  }
  return ids;
}

PerplexityResult perplexity(const Model& model, const Tokenizer& tokenizer, std::string_view text, int64_t window,
                            const std::function<void(int64_t done, int64_t total, double running)>& progress,
                            std::string_view text_name) {
  if (window < 2) fail(ErrorCode::kInvalidArgument, "window: expected at least 2 tokens, found {}", window);
  KvCache cache = model.make_cache(window);
  const std::vector<int32_t> ids = encode_documents(tokenizer, model.config(), text);
  const int64_t windows = static_cast<int64_t>(ids.size()) / window;
  if (windows == 0) {
    fail(ErrorCode::kInvalidArgument, "{}: expected at least one window of {} tokens, found {} tokens", text_name,
         window, ids.size());
  }
  const auto start = std::chrono::steady_clock::now();
  PerplexityResult result;
  double sum = 0;
  for (int64_t i = 0; i < windows; ++i) {
    cache.clear();
    const auto ids_of_window = std::span(ids).subspan(static_cast<size_t>(i * window), static_cast<size_t>(window));
    for (const double value : model.log_probabilities(ids_of_window, cache)) sum -= value;
    result.predictions += window - 1;
    result.perplexity = std::exp(sum / static_cast<double>(result.predictions));
    if (progress) progress(result.predictions, windows * (window - 1), result.perplexity);
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace flute::model
