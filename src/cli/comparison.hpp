#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/histogram.hpp"
#include "io/pipelines.hpp"

namespace flute {
class ThreadPool;
}

namespace flute::cli {

/// What `flute compare` finds out about one model.
struct ModelFacts {
  std::string name;  ///< short, unique among the models compared
  std::string path;
  bool quantized = false;
  std::string codebook;             ///< "nf", ..., "mixed", or a dtype
  std::string group;                ///< "64", "row", "mixed", or empty
  io::CheckpointReport checkpoint;  ///< with relative errors where there is an original
  double bits_per_weight = 0;       ///< of the quantized layers; of all matrices of a plain model
  double perplexity = 0;
  int64_t predictions = 0;
  double decode_tokens_per_second = 0;
  std::string sample;  ///< text generated, prompt included; empty unless asked for
  std::optional<WeightHistogram> histogram;
};

struct Comparison {
  std::string text_name;
  int64_t window = 512;
  std::string prompt;  ///< of the samples; empty: none
  std::vector<ModelFacts> models;
  std::optional<size_t> original;  ///< the first unquantized model

  /// How much higher the model's perplexity is than the original's, as a fraction; nothing for the original itself or
  /// without one.
  std::optional<double> perplexity_increase(size_t model) const {
    if (!original || *original == model) return std::nullopt;
    return models[model].perplexity / models[*original].perplexity - 1;
  }
};

struct ComparisonOptions {
  std::vector<std::string> models;
  std::string text;
  int64_t window = 512;
  std::string prompt;       ///< empty: no samples
  int64_t new_tokens = 64;  ///< generated to measure decode speed, and shown
  bool histograms = false;  ///< only the report shows them
};

/// perplexity_increase() for people: "+4.80 %", or "690x" for a model that lost its way; empty where there is none.
std::string change_text(std::optional<double> increase);

/// Measures the models one after the other. Shows progress, throws Interrupted on Ctrl-C.
Comparison compare_models(const ComparisonOptions& options, ThreadPool& threads);

}  // namespace flute::cli
