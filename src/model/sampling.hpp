#pragma once
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace flute::model {

/// What to sample with. temperature 0: the most probable token.
struct SamplingOptions {
  float temperature = 0.0f;
  float top_p = 1.0f;  ///< in [0, 1]: the most probable tokens that together reach this probability, at least one
  int top_k = 0;       ///< 0: all
  uint64_t seed = 0;
};

/// The id of the largest logit, of equal ones the lowest.
int32_t most_probable(std::span<const float> logits);

/// Draws tokens; the same seed and logits give the same tokens. Limits apply in this order: temperature, top_k, top_p
/// (of what top_k left).
class Sampler {
 public:
  /// Throws kInvalidArgument where an option is out of its range.
  explicit Sampler(const SamplingOptions& options);
  int32_t next(std::span<const float> logits);

 private:
  struct Candidate {
    float weight;  // a logit, then a probability but for a factor
    int32_t id;
  };
  /// Leaves the `top_k` largest in candidates_, then those that reach `top_p`.
  void keep_top_k();
  void keep_top_p();

  SamplingOptions options_;
  std::mt19937_64 random_;
  std::vector<Candidate> candidates_;
};

}  // namespace flute::model
