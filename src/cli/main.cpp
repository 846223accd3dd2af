#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>

#include "cli/command.hpp"
#include "cli/interrupt.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "flute/error.hpp"

namespace flute::cli {
namespace {

constexpr int kFailed = 1;
constexpr int kUsage = 2;

/// One line on standard error, whatever the message holds.
int complain(int code, std::string_view message) {
  std::string line = "flute: ";
  for (const char c : message) line += (c == '\n' || c == '\r') ? ' ' : c;
  write_note(line);
  return code;
}

/// Help whose descriptions end before column 100, whatever their length.
class WrappingFormatter : public CLI::Formatter {
 public:
  std::string make_option_desc(const CLI::Option* option) const override {
    constexpr size_t kWidth = 100;
    return wrap(option->get_description(), kWidth - get_column_width());
  }
};

/// In the order that `flute --help` shows them.
void add_commands(CLI::App& app, Command& chosen) {
  add_quantize(app, chosen);
  add_inspect(app, chosen);
  add_dequantize(app, chosen);
  add_perplexity(app, chosen);
  add_compare(app, chosen);
  add_generate(app, chosen);
  add_tokenize(app, chosen);
  add_bench(app, chosen);
}

/// The exit code of a command ended by a signal, as a shell would report it.
int report_interrupt(const Interrupted& interrupt) {
  const int code = 128 + interrupt.signal;
  if (interrupt.signal == SIGPIPE) return code;
  if (!interrupt.kept.empty()) return complain(code, "interrupted; " + interrupt.kept);
  return complain(code, "interrupted; no file was written or changed. Run the same command again to start over.");
}

std::string unknown_command(const CLI::App& app, const std::string& typed) {
  std::string names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names += (names.empty() ? "" : ", ") + command->get_name();
  }
  return "expected a command (" + names + "), found '" + typed + "'";
}

int run(int argc, char** argv) {
  CLI::App app(
      "FLUTE: lookup-table quantization of language models. Quantizes Hugging Face checkpoints, shows what it cost, "
      "and runs them on the CPU.",
      "flute");
  app.set_version_flag("--version", "flute " FLUTE_VERSION, "Print the version and exit");
  app.require_subcommand(0, 1);
  app.failure_message(CLI::FailureMessage::simple);
  app.footer("Each command explains itself: flute quantize --help");
  app.formatter(std::make_shared<WrappingFormatter>());
  Command chosen;
  add_commands(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {  // --help and --version
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    const auto typed = app.get_subcommands();
    if (typed.empty() && argc > 1 && argv[1][0] != '-') return complain(kUsage, unknown_command(app, argv[1]));
    const std::string command = typed.empty() ? "flute" : "flute " + typed.front()->get_name();
    return complain(kUsage, std::string(error.what()) + " (see " + command + " --help)");
  }
  if (!chosen) {
    write_note(app.help());
    return kUsage;
  }
  const int code = chosen();
  flush_out();
  return code;
}

}  // namespace
}  // namespace flute::cli

int main(int argc, char** argv) {
  using namespace flute::cli;
  catch_interrupts();
  try {
    return run(argc, argv);
  } catch (const UsageError& error) {
    return complain(kUsage, error.what());
  } catch (const Interrupted& interrupt) {
    return report_interrupt(interrupt);
  } catch (const std::bad_alloc&) {
    return complain(kFailed, "out of memory");
  } catch (const std::exception& error) {  // flute::Error among them
    return complain(kFailed, error.what());
  }
}
