#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/fail.hpp"
#include "cli/command.hpp"
#include "cli/comparison.hpp"
#include "cli/options.hpp"
#include "cli/report.hpp"
#include "cli/table.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "flute/threads.hpp"

namespace flute::cli {
namespace {

struct Options {
  ComparisonOptions compare;
  std::string report;
  int threads = 0;
  bool json = false;
};

nlohmann::ordered_json comparison_json(const Comparison& comparison) {
  nlohmann::ordered_json json;
  json["text"] = comparison.text_name;
  json["window"] = comparison.window;
  json["models"] = nlohmann::ordered_json::array();
  for (size_t i = 0; i < comparison.models.size(); ++i) {
    const ModelFacts& facts = comparison.models[i];
    nlohmann::ordered_json model;
    model["name"] = facts.name;
    model["path"] = facts.path;
    model["quantized"] = facts.quantized;
    model["codebook"] = facts.codebook;
    model["group_size"] = facts.group;
    model["bits_per_weight"] = facts.bits_per_weight;
    model["total_bits_per_weight"] = facts.checkpoint.bits_per_weight;
    model["bytes"] = facts.checkpoint.bytes;
    model["perplexity"] = facts.perplexity;
    model["predictions"] = facts.predictions;
    if (const auto increase = comparison.perplexity_increase(i)) model["perplexity_increase"] = *increase;
    model["decode_tokens_per_second"] = facts.decode_tokens_per_second;
    if (!comparison.prompt.empty()) model["sample"] = facts.sample;
    json["models"].push_back(std::move(model));
  }
  return json;
}

Table comparison_table(const Comparison& comparison) {
  Table table({{"model", Table::Align::kLeft},
               {"table", Table::Align::kLeft},
               {"group"},
               {"bits/weight"},
               {"size"},
               {"perplexity"},
               {"change"},
               {"decode tokens/s"}});
  for (size_t i = 0; i < comparison.models.size(); ++i) {
    const ModelFacts& facts = comparison.models[i];
    table.add_row({facts.name, facts.codebook, facts.group, fmt::format("{:.3f}", facts.bits_per_weight),
                   human_bytes(static_cast<double>(facts.checkpoint.bytes)), human_number(facts.perplexity),
                   change_text(comparison.perplexity_increase(i)), human_number(facts.decode_tokens_per_second)});
  }
  return table;
}

void print_samples(const Comparison& comparison) {
  for (const ModelFacts& facts : comparison.models) print("\n--- {} ---\n{}\n", facts.name, facts.sample);
}

/// Beside its place and renamed, so that an old report survives a failure.
void write_report(const std::filesystem::path& path, const std::string& html) {
  const std::string temporary = path.string() + ".tmp";
  const auto give_up = [&temporary](const std::filesystem::path& name) {
    const int error = errno;
    std::remove(temporary.c_str());
    fail(ErrorCode::kIo, "{}: cannot write the report: {}", name.string(), std::strerror(error));
  };
  std::FILE* const file = std::fopen(temporary.c_str(), "wb");
  if (file == nullptr) give_up(path);
  const bool written = std::fwrite(html.data(), 1, html.size(), file) == html.size();
  const bool closed = std::fclose(file) == 0;
  if (!written || !closed || std::rename(temporary.c_str(), path.c_str()) != 0) give_up(path);
}

/// Minutes of measuring should not end with a report that has no place.
void check_report_folder(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    fail(ErrorCode::kIo, "{}: cannot write the report: expected a folder {}, found none", path.string(),
         folder.string());
  }
}

int run(const Options& options) {
  if (!options.report.empty()) check_report_folder(options.report);
  ThreadPool threads(options.threads);
  ComparisonOptions compare = options.compare;
  compare.histograms = !options.report.empty();
  const Comparison comparison = compare_models(compare, threads);
  if (!options.report.empty()) write_report(options.report, render_report(comparison));
  if (options.json) {
    print_json(comparison_json(comparison));
    return 0;
  }
  print_table(comparison_table(comparison));
  if (!comparison.prompt.empty()) print_samples(comparison);
  if (!options.report.empty()) note("report: {}", options.report);
  return 0;
}

}  // namespace

void add_compare(CLI::App& app, Command& chosen) {
  auto options = std::make_shared<Options>();
  ComparisonOptions& compare = options->compare;
  CLI::App* command = app.add_subcommand("compare", "Put unquantized and quantized models side by side");
  command->add_option("models", compare.models, "Checkpoint folders; errors are relative to the first plain one")
      ->required()
      ->type_name("MODEL...");
  command->add_option("--text", compare.text, "Text for the perplexity, as for `flute perplexity`")
      ->required()
      ->type_name("FILE");
  command->add_option("--window", compare.window, "Tokens the model sees at once (default: 512)")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 20).description(""))
      ->type_name("N");
  command->add_option("--generate", compare.prompt, "Also show how each model continues this text")
      ->type_name("PROMPT");
  command->add_option("-n,--tokens", compare.new_tokens, "Tokens generated for the speed and the samples (default: 64)")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 20).description(""))
      ->type_name("N");
  command
      ->add_option(
          "--report", options->report,
          "Also write an HTML page: the table, perplexity against bits, each layer's error, the tables' values "
          "over the weights")
      ->type_name("FILE.html");
  add_threads(*command, options->threads);
  add_json(*command, options->json);
  command->footer(
      "bits/weight counts codes, scales and tables of the quantized layers; size counts everything.\n\n"
      "Example:\n  flute compare Llama-3-8B Llama-3-8B-nf4 Llama-3-8B-nf3 --text wiki.test.txt --report out.html");
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace flute::cli
