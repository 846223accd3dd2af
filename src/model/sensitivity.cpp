#include "model/sensitivity.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "model/kernels.hpp"

namespace flute::model {
namespace {

/// The tokens' activations behind the last block, in windows, in the model itself and in each that has been changed.
class Streams {
 public:
  Streams(const Blocks& blocks, std::span<const int32_t> ids, int64_t length)
      : blocks_(blocks),
        length_(length),
        windows_(static_cast<int64_t>(ids.size()) / length),
        activations_(blocks.config, length),
        cache_(KvCache::of_one_block(blocks.config, length)),
        rope_table_(blocks.rope, 0, length),
        original_(static_cast<size_t>(windows_ * window_size())) {
    for (int64_t i = 0; i < windows_; ++i) {
      blocks.embed(ids.subspan(static_cast<size_t>(i * length), static_cast<size_t>(length)),
                   original_.data() + i * window_size());
    }
  }

  /// A model that differs in this block first; to be called before advance().
  void fork(const Block& block, int64_t layer) {
    changed_.push_back(original_);
    run(block, layer, changed_.back());
    ++ahead_;
  }

  /// All through the block that fork() was called for last.
  void advance(const Block& block, int64_t layer) {
    for (size_t i = 0; i + ahead_ < changed_.size(); ++i) run(block, layer, changed_[i]);
    run(block, layer, original_);
    ahead_ = 0;
  }

  /// Of each changed model, and of one whose head is `changed_head` where there is one.
  std::vector<double> divergences(const Head& head, const Head* changed_head) {
    const int64_t vocab = blocks_.config.vocab_size;
    const int64_t step = std::clamp<int64_t>((int64_t{1} << 24) / vocab, 1, length_);  // 64 MB of logits
    const auto expected = Activations::allocate(step * vocab), found = Activations::allocate(step * vocab);
    const int64_t width = blocks_.config.hidden_size, total = windows_ * length_;
    std::vector<double> sums(changed_.size() + (changed_head != nullptr ? 1 : 0));
    for (int64_t begin = 0; begin < total; begin += step) {
      const int64_t m = std::min(step, total - begin);
      const auto logits = [&](const Head& of, const std::vector<float>& hidden, float* out) {
        for (int64_t done = 0; done < m; done += length_) {
          const int64_t rows = std::min(length_, m - done);
          std::copy_n(hidden.data() + (begin + done) * width, rows * width, activations_.hidden.get());
          blocks_.logits(of, activations_.hidden.get(), rows, out + done * vocab);
        }
      };
      logits(head, original_, expected.get());
      for (size_t i = 0; i < sums.size(); ++i) {
        const bool is_head = i == changed_.size();
        logits(is_head ? *changed_head : head, is_head ? original_ : changed_[i], found.get());
        std::vector<double> of_row(static_cast<size_t>(m));
        blocks_.for_rows(m, [&](int64_t row) {
          of_row[static_cast<size_t>(row)] = divergence(expected.get() + row * vocab, found.get() + row * vocab, vocab);
        });
        for (const double one : of_row) sums[i] += one;
      }
    }
    for (double& sum : sums) sum /= static_cast<double>(total);
    return sums;
  }

 private:
  /// KL(p || q) of the distributions that two rows of logits stand for.
  static double divergence(const float* expected, const float* found, int64_t count) {
    const double p_sum = log_sum_exp(expected, count), q_sum = log_sum_exp(found, count);
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double log_p = double{expected[i]} - p_sum;
      sum += std::exp(log_p) * (log_p - (double{found[i]} - q_sum));
    }
    return sum;
  }

  int64_t window_size() const { return length_ * blocks_.config.hidden_size; }

  void run(const Block& block, int64_t layer, std::vector<float>& hidden) {
    for (int64_t i = 0; i < windows_; ++i) {
      float* const window = hidden.data() + i * window_size();
      std::copy_n(window, window_size(), activations_.hidden.get());
      blocks_.norm_for_attention(block, length_, activations_);
      cache_.clear();
      blocks_.attend_rows(block, layer, 0, length_, rope_table_, cache_, activations_);
      blocks_.add_attention(block, length_, activations_);
      blocks_.norm_for_mlp(block, length_, activations_);
      blocks_.activate_mlp(block, length_, activations_);
      blocks_.add_mlp(block, length_, activations_);
      std::copy_n(activations_.hidden.get(), window_size(), window);
    }
  }

  const Blocks& blocks_;
  int64_t length_, windows_;
  Activations activations_;  // of one window
  KvCache cache_;
  RopeTable rope_table_;
  std::vector<float> original_;              // [windows, length, hidden_size]
  std::vector<std::vector<float>> changed_;  // the same of each changed model
  size_t ahead_ = 0;                         // of them, the last, are behind the next block already
};

}  // namespace

std::vector<double> measure_divergence(const Blocks& blocks, std::span<const int32_t> ids, int64_t length,
                                       std::span<const LayerGroup> groups,
                                       const std::function<PackedLayers(const LayerGroup&)>& changed,
                                       const std::function<void(double share)>& progress) {
  Streams streams(blocks, ids, length);
  size_t next = 0;
  for (int64_t layer = 0; layer < blocks.config.num_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    for (; next < groups.size() && groups[next].names.front().starts_with(prefix); ++next) {
      const QuantizedBlock quantized{changed(groups[next]), {}};
      streams.fork(blocks.read_block(layer, &quantized), layer);
    }
    streams.advance(blocks.read_block(layer), layer);
    if (progress) progress(1.0 / static_cast<double>(blocks.config.num_layers));
  }
  std::optional<Head> changed_head;
  if (next < groups.size()) {
    const PackedLayers quantized = changed(groups[next]);
    changed_head = blocks.read_head(&quantized);
  }
  return streams.divergences(blocks.read_head(), changed_head ? &*changed_head : nullptr);
}

}  // namespace flute::model
