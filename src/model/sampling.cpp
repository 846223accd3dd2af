#include "model/sampling.hpp"

#include <algorithm>
#include <cmath>

#include "base/fail.hpp"

namespace flute::model {

int32_t most_probable(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {
  if (!(options.temperature >= 0) || std::isinf(options.temperature)) {
    fail(ErrorCode::kInvalidArgument, "temperature: expected 0 or more, found {}", options.temperature);
  }
  if (!(options.top_p >= 0 && options.top_p <= 1)) {
    fail(ErrorCode::kInvalidArgument, "top-p: expected 0 to 1, found {}", options.top_p);
  }
  if (options.top_k < 0) fail(ErrorCode::kInvalidArgument, "top-k: expected 0 or more, found {}", options.top_k);
}

void Sampler::keep_top_k() {
  const size_t keep = static_cast<size_t>(options_.top_k);
  if (keep == 0 || keep >= candidates_.size()) return;
  const auto larger = [](const Candidate& a, const Candidate& b) {
    return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
  };
  std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<ptrdiff_t>(keep), candidates_.end(), larger);
  candidates_.resize(keep);
}

void Sampler::keep_top_p() {
  if (options_.top_p >= 1) return;
  double total = 0;
  for (const Candidate& candidate : candidates_) total += static_cast<double>(candidate.weight);
  // A heap: of a large vocabulary only the few most probable tokens need an order.
  const auto smaller = [](const Candidate& a, const Candidate& b) {
    return a.weight < b.weight || (a.weight == b.weight && a.id > b.id);
  };
  std::make_heap(candidates_.begin(), candidates_.end(), smaller);
  double reached = 0;
  auto end = candidates_.end();
  do {
    std::pop_heap(candidates_.begin(), end, smaller);
    --end;
    reached += static_cast<double>(end->weight);
  } while (reached < static_cast<double>(options_.top_p) * total && end != candidates_.begin());
  candidates_.erase(candidates_.begin(), end);
}

int32_t Sampler::next(std::span<const float> logits) {
  if (options_.temperature == 0) return most_probable(logits);
  candidates_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) candidates_[i] = {logits[i], static_cast<int32_t>(i)};
  keep_top_k();
  const float largest = *std::max_element(logits.begin(), logits.end());
  for (Candidate& candidate : candidates_) {
    candidate.weight = std::exp((candidate.weight - largest) / options_.temperature);
  }
  keep_top_p();
  double total = 0;
  for (const Candidate& candidate : candidates_) total += static_cast<double>(candidate.weight);
  // Not std::uniform_real_distribution, which differs from one standard library to the next.
  double rest = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
  for (const Candidate& candidate : candidates_) {
    rest -= static_cast<double>(candidate.weight);
    if (rest < 0) return candidate.id;
  }
  return candidates_.back().id;  // rounding
}

}  // namespace flute::model
