#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <string_view>

#include "cli/command.hpp"
#include "cli/options.hpp"
#include "cli/progress.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "flute/threads.hpp"
#include "io/pipelines.hpp"

namespace flute::cli {
namespace {

struct Options {
  std::string source, target;
  DType dtype = DType::kBF16;
  bool overwrite = false;
  int threads = 0;
};

int run(const Options& options) {
  ThreadPool threads(options.threads);
  double seconds = 0;
  {
    ProgressBar bar("dequantize");
    io::dequantize_checkpoint(options.source, options.target, options.dtype, options.overwrite, &threads,
                              bar.observer());
    seconds = bar.seconds();
  }
  const io::CheckpointReport written = io::inspect_checkpoint(options.target);
  print("written to   {}\n", options.target);
  print("size         {} of {} weights in {}\n", human_bytes(static_cast<double>(written.bytes)),
        dtype_name(options.dtype), human_seconds(seconds));
  return 0;
}

}  // namespace

void add_dequantize(CLI::App& app, Command& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("dequantize", "Turn a quantized checkpoint into a plain one that any program can load");
  command->add_option("source", options->source, "Quantized checkpoint")->required()->type_name("SRC");
  command->add_option("target", options->target, "Folder to write; appears when everything is done")
      ->required()
      ->type_name("DST");
  add_dtype(*command, "--dtype", options->dtype, "Type of the weights written");
  command->add_flag("--overwrite", options->overwrite, "Replace DST if it exists");
  add_threads(*command, options->threads);
  command->footer("Example:\n  flute dequantize Llama-3-8B-nf4 Llama-3-8B-rounded --dtype bf16");
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace flute::cli
