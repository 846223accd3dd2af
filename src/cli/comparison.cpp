#include "cli/comparison.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <span>
#include <string_view>
#include <utility>

#include "base/fail.hpp"
#include "cli/interrupt.hpp"
#include "cli/layers.hpp"
#include "cli/progress.hpp"
#include "cli/text.hpp"
#include "flute/threads.hpp"
#include "model/model.hpp"
#include "model/tokenizer.hpp"

namespace flute::cli {
namespace {

constexpr size_t kPromptTokens = 32;       // of the text, where no prompt is given
constexpr double kDecodeSeconds = 0.5;     // of measuring the speed suffice,
constexpr size_t kDecodeRuns = 9;          // and as many runs
constexpr size_t kPromptText = 16 * 1024;  // bytes of the text that surely hold them

/// The last component of each path; the whole path where that would not tell them apart.
std::vector<std::string> short_names(const std::vector<std::string>& paths) {
  std::vector<std::string> bases, names;
  for (const std::string& path : paths) bases.push_back(base_name(path));
  for (size_t i = 0; i < paths.size(); ++i) {
    names.push_back(std::count(bases.begin(), bases.end(), bases[i]) > 1 ? paths[i] : bases[i]);
  }
  return names;
}

/// The one thing in `found`, "mixed" for several.
std::string one_or_mixed(const std::set<std::string>& found) {
  return found.empty() ? "" : found.size() == 1 ? *found.begin() : "mixed";
}

void describe_format(ModelFacts& facts) {
  std::set<std::string> codebooks, groups;
  for (const io::LayerReport& layer : facts.checkpoint.layers) {
    if (layer.quantized != facts.quantized || layer.k == 0) continue;
    codebooks.insert(layer.codebook);
    if (layer.quantized) groups.insert(group_text(layer));
  }
  facts.codebook = one_or_mixed(codebooks);
  facts.group = one_or_mixed(groups);
}

/// What the headers say; cheap, so that a bad path among the models is found before the first is measured.
ModelFacts open_model(const std::string& path, std::string name) {
  ModelFacts facts;
  facts.name = std::move(name);
  facts.path = path;
  facts.checkpoint = io::inspect_checkpoint(path);
  facts.quantized = quantized_count(facts.checkpoint) > 0;
  facts.bits_per_weight = layer_bits_per_weight(facts.checkpoint);
  describe_format(facts);
  return facts;
}

void measure_errors(ModelFacts& facts, const ModelFacts& original, bool histogram, ThreadPool& threads) {
  ProgressBar bar(facts.name + ": layer errors");
  facts.checkpoint = io::inspect_checkpoint(facts.path, original.path, &threads, bar.observer());
  if (!histogram) return;
  check_interrupt();
  facts.histogram = weight_histogram(io::Checkpoint::open(facts.path), io::Checkpoint::open(original.path));
}

void run_model(ModelFacts& facts, std::string_view text, const ComparisonOptions& options, ThreadPool& threads) {
  const auto tokenizer = model::Tokenizer::load(std::filesystem::path(facts.path) / "tokenizer.json");
  const auto model = model::Model::load(facts.path, &threads);
  check_interrupt();
  {
    ProgressBar bar(facts.name + ": perplexity", Unit::kTokens);
    const model::PerplexityResult result = model::perplexity(
        model, tokenizer, text, options.window,
        [&bar](int64_t done, int64_t total, double) { bar.update(done, total); }, options.text);
    facts.perplexity = result.perplexity;
    facts.predictions = result.predictions;
  }
  std::vector<int32_t> prompt =
      tokenizer.encode(options.prompt.empty() ? text.substr(0, kPromptText) : std::string_view(options.prompt));
  if (options.prompt.empty()) prompt.resize(std::min(prompt.size(), kPromptTokens));
  ProgressBar bar(facts.name + ": generate", Unit::kTokens);
  int64_t made = 0;
  // End tokens are ignored, so that every model is timed over the same number of tokens; the sample ends at the first.
  const model::GenerationResult result =
      model::generate(model, prompt, options.new_tokens, {}, {},
                      [&bar, &made, &options](int32_t) { bar.update(++made, options.new_tokens); });
  // A small model is done in milliseconds, in which the machine may have been busy elsewhere: the median of some runs.
  const auto rate = [](const model::GenerationResult& run) {
    return run.decode_seconds > 0 ? static_cast<double>(run.new_tokens - 1) / run.decode_seconds : 0;
  };
  std::vector<double> rates = {rate(result)};
  double seconds = result.decode_seconds;
  while (seconds < kDecodeSeconds && rates.size() < kDecodeRuns) {
    check_interrupt();
    const model::GenerationResult run = model::generate(model, prompt, options.new_tokens, {}, {});
    rates.push_back(rate(run));
    seconds += run.decode_seconds;
  }
  std::sort(rates.begin(), rates.end());
  facts.decode_tokens_per_second = rates[rates.size() / 2];
  if (options.prompt.empty()) return;
  const std::vector<int32_t>& eos = model.config().eos_token_ids;
  const auto end = std::find_if(result.ids.begin() + result.prompt_tokens, result.ids.end(),
                                [&eos](int32_t id) { return std::find(eos.begin(), eos.end(), id) != eos.end(); });
  facts.sample = tokenizer.decode(std::span(result.ids.data(), static_cast<size_t>(end - result.ids.begin())));
}

}  // namespace

std::string change_text(std::optional<double> increase) {
  constexpr double kCountTimesFrom = 9;  // ten times the original
  if (!increase) return "";
  return *increase < kCountTimesFrom ? fmt::format("{:+.2f} %", 100 * *increase)
                                     : fmt::format("{:.0f}x", 1 + *increase);
}

Comparison compare_models(const ComparisonOptions& options, ThreadPool& threads) {
  Comparison comparison;
  comparison.text_name = base_name(options.text);
  comparison.window = options.window;
  comparison.prompt = options.prompt;
  const std::string text = read_text(options.text);
  const std::vector<std::string> names = short_names(options.models);
  for (size_t i = 0; i < names.size(); ++i) {
    comparison.models.push_back(open_model(options.models[i], names[i]));
    if (!comparison.models.back().quantized && !comparison.original) comparison.original = i;
  }
  for (ModelFacts& facts : comparison.models) {
    if (facts.quantized && comparison.original) {
      measure_errors(facts, comparison.models[*comparison.original], options.histograms, threads);
    }
    run_model(facts, text, options, threads);
  }
  return comparison;
}

}  // namespace flute::cli
