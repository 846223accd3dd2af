#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "base/fail.hpp"
#include "cli/command.hpp"
#include "cli/interrupt.hpp"
#include "cli/options.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "io/files.hpp"
#include "io/json.hpp"
#include "model/tokenizer.hpp"

namespace flute::cli {
namespace {

struct Options {
  std::string model, text = "-";
  bool decode = false;
  bool no_special = false, keep_special = false;
  bool json = false, jsonl = false;
};

using Json = nlohmann::ordered_json;
using Ids = std::vector<int32_t>;

Ids ids_from_json(const Json& json, const std::string& what) {
  const auto is_id = [](const Json& id) { return id.is_number_integer() && id >= 0 && id <= INT32_MAX; };
  if (!json.is_array() || !std::all_of(json.begin(), json.end(), is_id)) {
    fail(ErrorCode::kInvalidFormat, "{}: expected an array of ids, found {}", what, io::describe(json));
  }
  return json.get<Ids>();
}

Ids ids_from_text(const std::string& text) {
  Ids ids;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    int32_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size() || id < 0) {
      throw UsageError("ids: expected numbers separated by spaces, found '" + word + "'");
    }
    ids.push_back(id);
  }
  return ids;
}

/// One JSON value a line in, one a line out.
void run_lines(const Options& options, const model::Tokenizer& tokenizer) {
  std::string line;
  for (size_t number = 1; std::getline(std::cin, line); ++number) {
    check_interrupt();
    const std::string what = fmt::format("standard input, line {}", number);
    const Json json = io::parse_json(line, what);
    Json result;
    if (options.decode) {
      result = tokenizer.decode(ids_from_json(json, what), !options.keep_special);
    } else if (json.is_string()) {
      result = tokenizer.encode(json.get_ref<const std::string&>(), !options.no_special);
    } else {
      fail(ErrorCode::kInvalidFormat, "{}: expected a string, found {}", what, io::describe(json));
    }
    print_json(result, JsonStyle::kOneLine);
  }
}

int run(const Options& options) {
  std::filesystem::path path = options.model;
  if (io::is_folder(path)) path /= "tokenizer.json";
  const auto tokenizer = model::Tokenizer::load(path);
  if (options.jsonl) {
    run_lines(options, tokenizer);
    return 0;
  }
  const std::string text = options.text == "-" ? read_text("-", true) : options.text;
  if (options.decode) {
    const std::string decoded = tokenizer.decode(ids_from_text(text), !options.keep_special);
    print("{}\n", options.json ? Json{{"text", decoded}}.dump() : decoded);
    return 0;
  }
  const Ids ids = tokenizer.encode(text, !options.no_special);
  print("{}\n", options.json ? Json{{"ids", ids}}.dump() : fmt::format("{}", fmt::join(ids, " ")));
  return 0;
}

}  // namespace

void add_tokenize(CLI::App& app, Command& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("tokenize", "Show the ids that a model's tokenizer makes of a text, or the text");
  command->add_option("model", options->model, "Checkpoint folder or tokenizer.json")->required()->type_name("MODEL");
  command->add_option("text", options->text, "The text, or - (default) to read it from standard input")
      ->type_name("TEXT");
  CLI::Option* decode =
      command->add_flag("--decode", options->decode, "TEXT is ids, separated by spaces: print their text");
  command->add_flag("--no-special", options->no_special, "Add no special token (begin of text)")->excludes(decode);
  command->add_flag("--keep-special", options->keep_special, "With --decode: show special tokens")->needs(decode);
  add_json(*command, options->json);
  command->add_flag("--jsonl", options->jsonl,
                    "Read a JSON string (with --decode an array of ids) from each line of standard input and print the "
                    "JSON answer on one line");
  command->footer(
      "Examples:\n"
      "  flute tokenize Llama-3-8B \"Hello, world\"\n"
      "  flute tokenize Llama-3-8B --decode --keep-special \"128000 9906 11 1917\"");
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace flute::cli
