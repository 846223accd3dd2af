#pragma once
#include <functional>
#include <stdexcept>

namespace CLI {
class App;
}

namespace flute::cli {

/// What the program does once its command line has been read; returns the exit code.
using Command = std::function<int()>;

/// The command line asks for something that cannot be: exit code 2. The message says what was expected and found.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// How a subcommand is made: one file `<name>.cpp` with `add_<name>`, which adds the CLI11 subcommand with its options
// and an example in its footer, and sets `chosen` in the subcommand's callback (the last thing that parsing does):
//
//   void add_example(CLI::App& app, Command& chosen) {
//     auto options = std::make_shared<Options>();
//     CLI::App* command = app.add_subcommand("example", "one line for `flute --help`");
//     command->add_option("model", options->model, "...")->required();
//     command->footer("Example:\n  flute example MODEL");
//     command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
//   }
//
// A command reports failure by throwing: flute::Error (exit 1), UsageError (2), Interrupted (interrupt.hpp). It prints
// results with print() and notes with note() (terminal.hpp), and shows what takes longer than a second with
// ProgressBar.
void add_quantize(CLI::App& app, Command& chosen);
void add_inspect(CLI::App& app, Command& chosen);
void add_dequantize(CLI::App& app, Command& chosen);
void add_perplexity(CLI::App& app, Command& chosen);
void add_compare(CLI::App& app, Command& chosen);
void add_generate(CLI::App& app, Command& chosen);
void add_tokenize(CLI::App& app, Command& chosen);
void add_bench(CLI::App& app, Command& chosen);

}  // namespace flute::cli
