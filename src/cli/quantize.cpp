#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "cli/command.hpp"
#include "cli/terminal.hpp"

namespace flute::cli {
namespace {
struct Options {
  std::string source, target;
};
}  // namespace

void add_quantize(CLI::App& app, Command& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("quantize", "Quantize a checkpoint");
  command->add_option("source", options->source, "Checkpoint folder")->required();
  command->add_option("target", options->target, "Folder to write")->required();
  command->footer("Example:\n  flute quantize Llama-3-8B Llama-3-8B-nf4 --bits 4");
  command->callback([options, &chosen] { chosen = [] { return 0; }; });
}

}  // namespace flute::cli
