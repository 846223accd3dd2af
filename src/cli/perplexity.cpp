#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/command.hpp"
#include "cli/options.hpp"
#include "cli/progress.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "flute/threads.hpp"
#include "model/model.hpp"
#include "model/tokenizer.hpp"

namespace flute::cli {
namespace {

struct Options {
  std::string model, text;
  int64_t window = 512;
  int threads = 0;
  bool json = false;
};

int run(const Options& options) {
  const std::string text = read_text(options.text, true);
  ThreadPool threads(options.threads);
  const auto tokenizer = model::Tokenizer::load(std::filesystem::path(options.model) / "tokenizer.json");
  const auto model = model::Model::load(options.model, &threads);
  model::PerplexityResult result;
  {
    ProgressBar bar("perplexity", Unit::kTokens);
    result = model::perplexity(
        model, tokenizer, text, options.window,
        [&bar](int64_t done, int64_t total, double running) {
          bar.update(done, total, fmt::format("perplexity so far {}", human_number(running)));
        },
        options.text == "-" ? "standard input" : options.text);
  }
  if (options.json) {
    nlohmann::ordered_json json;
    json["perplexity"] = result.perplexity;
    json["predictions"] = result.predictions;
    json["window"] = options.window;
    json["seconds"] = result.seconds;
    print_json(json, JsonStyle::kOneLine);
    return 0;
  }
  print("perplexity {:.4f} ({} predictions in windows of {} tokens, {})\n", result.perplexity,
        human_count(result.predictions), options.window, human_seconds(result.seconds));
  return 0;
}

}  // namespace

void add_perplexity(CLI::App& app, Command& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("perplexity", "How well a model predicts a text: lower is better");
  command->add_option("model", options->model, "Checkpoint folder, quantized or not")->required()->type_name("MODEL");
  command
      ->add_option("text", options->text,
                   "UTF-8 text file, or - for standard input; a line of one NUL character ends a document")
      ->required()
      ->type_name("TEXT");
  command->add_option("--window", options->window, "Tokens the model sees at once (default: 512)")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 20).description(""))
      ->type_name("N");
  add_threads(*command, options->threads);
  add_json(*command, options->json);
  command->footer(
      "Every document gets a begin and an end token; all are strung together and cut into windows, of which a last\n"
      "partial one is dropped. Within a window each token but the first is predicted from those before it.\n\n"
      "Example:\n  flute perplexity Llama-3-8B-nf4 wiki.test.txt --window 2048");
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace flute::cli
