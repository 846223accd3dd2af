#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/fail.hpp"
#include "cli/command.hpp"
#include "cli/interrupt.hpp"
#include "cli/options.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "flute/threads.hpp"
#include "io/model_config.hpp"
#include "model/chat.hpp"
#include "model/model.hpp"
#include "model/tokenizer.hpp"

namespace flute::cli {
namespace {

struct Options {
  std::string model, prompt;
  int64_t new_tokens = 128;
  model::SamplingOptions sampling;
  bool seed_given = false;
  bool chat = false;
  int threads = 0;
  bool json = false;
};

double rate(int64_t count, double seconds) { return seconds > 0 ? static_cast<double>(count) / seconds : 0; }

std::vector<int32_t> prompt_ids(const Options& options, const io::ModelConfig& config,
                                const model::Tokenizer& tokenizer, const std::string& prompt) {
  if (options.chat) {
    try {
      return model::chat_prompt_ids(config.architecture, tokenizer, prompt);
    } catch (const Error& error) {
      throw Error(error.code(), options.model + ": " + error.what());
    }
  }
  std::vector<int32_t> ids = tokenizer.encode(prompt);
  if (ids.empty()) fail(ErrorCode::kInvalidArgument, "prompt: expected text, found nothing to continue");
  return ids;
}

int run(Options options) {
  const std::string prompt = options.prompt == "-" ? read_text("-", true) : options.prompt;
  if (!options.seed_given) options.sampling.seed = std::random_device{}();
  const io::ModelConfig config = io::read_model_config(options.model);
  const auto tokenizer = model::Tokenizer::load(std::filesystem::path(options.model) / "tokenizer.json");
  const std::vector<int32_t> ids = prompt_ids(options, config, tokenizer, prompt);
  std::vector<int32_t> eos = config.eos_token_ids;
  if (options.chat) eos.push_back(model::chat_end_id(config.architecture, tokenizer));
  ThreadPool threads(options.threads);
  const auto model = model::Model::load(options.model, &threads);

  model::StreamDecoder decoder(tokenizer);
  const auto show = [&options](const std::string& text) {
    if (options.json || text.empty()) return;
    write_out(text);
    flush_out();
  };
  std::string shown_prompt;  // with the first new token, when it is known that there is one
  for (const int32_t id : ids) {
    const std::string text = decoder.push(id);
    if (!options.chat) shown_prompt += text;
  }
  double multiply_start = 0;  // when the prompt is done
  int64_t tokens_seen = 0;
  const auto on_token = [&](int32_t id) {
    check_interrupt();
    if (tokens_seen++ == 0) {
      multiply_start = model.multiply_seconds();
      show(shown_prompt);
    }
    show(decoder.push(id));
  };
  const model::GenerationResult result =
      model::generate(model, ids, options.new_tokens, options.sampling, eos, on_token);
  const double multiply_seconds = model.multiply_seconds() - multiply_start;
  const double prompt_rate = rate(result.prompt_tokens, result.prompt_seconds);
  const double decode_rate = rate(result.new_tokens - 1, result.decode_seconds);

  if (options.json) {
    nlohmann::ordered_json json;
    json["ids"] = result.ids;
    json["text"] = tokenizer.decode(result.ids);
    json["new_text"] = tokenizer.decode(std::span(result.ids).subspan(static_cast<size_t>(result.prompt_tokens)));
    json["prompt_tokens"] = result.prompt_tokens;
    json["new_tokens"] = result.new_tokens;
    json["prompt_tokens_per_second"] = prompt_rate;
    json["decode_tokens_per_second"] = decode_rate;
    json["multiply_fraction"] = result.new_tokens > 1 ? multiply_seconds / result.decode_seconds : 0;
    json["weight_bytes"] = model.weight_bytes();
    if (options.sampling.temperature > 0) json["seed"] = options.sampling.seed;
    print_json(json, JsonStyle::kOneLine);
    return 0;
  }
  if (tokens_seen == 0) show(shown_prompt);
  show(decoder.finish() + "\n");
  std::string seed;
  if (options.sampling.temperature > 0) seed = fmt::format("; seed {}", options.sampling.seed);
  note("prompt {} tokens, {} tokens/s; decode {} tokens, {} tokens/s{}", result.prompt_tokens,
       human_number(prompt_rate), result.new_tokens, human_number(decode_rate), seed);
  return 0;
}

}  // namespace

void add_generate(CLI::App& app, Command& chosen) {
  auto options = std::make_shared<Options>();
  model::SamplingOptions& sampling = options->sampling;
  CLI::App* command = app.add_subcommand("generate", "Continue a text with a model");
  command->add_option("model", options->model, "Checkpoint folder, quantized or not")->required()->type_name("MODEL");
  command->add_option("-p,--prompt", options->prompt, "The text to continue, or - to read it from standard input")
      ->required()
      ->type_name("TEXT");
  command->add_option("-n,--tokens", options->new_tokens, "At most this many new tokens (default: 128)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24).description(""))
      ->type_name("N");
  command
      ->add_option("--temperature", sampling.temperature,
                   "0 (default): always the most probable token; higher: more variety")
      ->check(CLI::Range(0.0F, 100.0F).description(""))
      ->type_name("T");
  command->add_option("--top-p", sampling.top_p, "Draw from the most probable tokens that sum to P (default: 1, all)")
      ->check(CLI::Range(0.0F, 1.0F).description(""))
      ->type_name("P");
  command->add_option("--top-k", sampling.top_k, "Draw from the K most probable tokens (default: 0, all)")
      ->check(CLI::Range(0, 1 << 24).description(""))
      ->type_name("K");
  CLI::Option* seed =
      command->add_option("--seed", sampling.seed, "Makes draws repeatable (default: a random one)")->type_name("N");
  command->add_flag("--chat", options->chat, "The text is a user's message: wrap it as the model's chat format asks");
  add_threads(*command, options->threads);
  add_json(*command, options->json);
  command->footer(
      "Text goes to standard output as it is made, speed to standard error. Generation stops at an end token.\n"
      "With --json: \"ids\" and \"text\" of prompt and continuation, tokens/s, and the share of decode time spent in\n"
      "multiplies.\n\n"
      "Examples:\n"
      "  flute generate Llama-3-8B-nf4 -p 'The lookup table' -n 64\n"
      "  flute generate gemma-2-9b-it-nf4 --chat -p - --temperature 0.8 --top-p 0.95 < question.txt");
  command->callback([options, seed, &chosen] {
    options->seed_given = seed->count() > 0;
    chosen = [options] { return run(*options); };
  });
}

}  // namespace flute::cli
