#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/command.hpp"
#include "cli/interrupt.hpp"
#include "cli/layers.hpp"
#include "cli/options.hpp"
#include "cli/progress.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "flute/threads.hpp"
#include "io/files.hpp"
#include "io/pipelines.hpp"
#include "model/calibrated.hpp"

namespace flute::cli {
namespace {

struct Options {
  std::string source, target;
  io::QuantizeOptions quantize;
  std::string calibration;
  int64_t calibration_tokens = 65536;
  std::vector<std::string> layer_bits;
  double target_bits = 0;
  bool bits_given = false, group_size_given = false, method_given = false;
  int threads = 0;
  bool dry_run = false, json = false;
};

bool is_calibrated(std::string_view method) { return method == "awq" || method == "gptq" || method == "ldlq"; }

/// --target-bits stands in place of --bits and --layer-bits; --group-size is then the only one, not chosen.
void complete_target(Options& options) {
  if (options.target_bits == 0) return;
  if (options.bits_given || !options.layer_bits.empty()) {
    throw UsageError(fmt::format("--target-bits: expected neither --bits nor --layer-bits with it, found {}",
                                 options.bits_given ? "--bits" : "--layer-bits"));
  }
  if (options.calibration.empty() || options.dry_run) {
    throw UsageError(options.dry_run
                         ? "--target-bits: expected no --dry-run with it, since bits are chosen by measuring"
                         : "--target-bits: expected --calibration TEXT with it, found none");
  }
  io::TargetBits& target = options.quantize.target.emplace();
  target.bits = options.target_bits;
  if (options.group_size_given) target.group_sizes = {options.quantize.group_size};
  for (const int bits : target.widths) check_codebook(options.quantize.codebook, bits);
}

/// What CLI11 cannot check by itself: options that depend on each other.
void complete(Options& options) {
  io::QuantizeOptions& quantize = options.quantize;
  for (const std::string& regex : quantize.include) check_regex("--include", regex);
  for (const std::string& regex : quantize.exclude) check_regex("--exclude", regex);
  for (const std::string& text : options.layer_bits) {
    quantize.layer_bits.push_back(parse_layer_bits(text));
    check_codebook(quantize.codebook, quantize.layer_bits.back().second);
  }
  complete_target(options);
  check_codebook(quantize.codebook, quantize.bits);
  // The file says how many bits its table has.
  if (!options.bits_given && !is_codebook_name(quantize.codebook)) {
    quantize.bits = io::read_codebook_file(quantize.codebook).bits;
  }
  if (quantize.method == "nfl") {
    throw UsageError(
        "--method nfl: learned NormalFloat takes gradients, which the Python package computes: flute quantize SRC "
        "QUANTIZED --bits N, then python -m flute.tune --method nfl SRC QUANTIZED DST --text TEXT");
  }
  if (!options.method_given && !options.calibration.empty()) quantize.method = "ldlq";
  const bool calibrates = is_calibrated(quantize.method);
  if (calibrates && options.calibration.empty() && !options.dry_run) {
    throw UsageError(fmt::format("--method {}: expected --calibration TEXT, found none", quantize.method));
  }
  if (!calibrates && !options.calibration.empty()) {
    throw UsageError(fmt::format(
        "--calibration: expected --method awq, gptq or ldlq with it, found {}, which takes no text", quantize.method));
  }
  if (io::searches_scales(quantize.method) && quantize.clip != 1) {
    throw UsageError(fmt::format("--clip: expected none with {}, which searches for the scales, found {}",
                                 quantize.method, quantize.clip));
  }
  if (options.target.empty() && !options.dry_run) throw UsageError("target is required unless --dry-run is given");
}

void print_summary(const io::CheckpointReport& before, const io::CheckpointReport& after) {
  const auto size_before = static_cast<double>(before.bytes);
  const auto size_after = static_cast<double>(after.bytes);
  const int64_t quantized = quantized_count(after);
  print("layers       {} quantized, {} tensors kept as they are\n", quantized,
        static_cast<int64_t>(after.layers.size()) - quantized);
  print("size         {} -> {} ({:.2f}x smaller)\n", human_bytes(size_before), human_bytes(size_after),
        size_before / std::max(size_after, 1.0));
  print("bits/weight  {:.3f} in the quantized layers, {:.3f} in all (before: {:.3f})\n",
        after.quantized_bits_per_weight, after.bits_per_weight, before.bits_per_weight);
}

/// The layers of a block that are multiplied as one: "model.layers.0.self_attn.q_proj, k_proj, v_proj".
std::string joined_names(const std::vector<std::string>& names) {
  std::string text = names.front();
  for (size_t i = 1; i < names.size(); ++i) text += ", " + names[i].substr(names[i].rfind('.') + 1);
  return text;
}

Table choice_table(const std::vector<model::ChosenFormat>& chosen) {
  Table table({{"layers", Table::Align::kLeft}, {"bits"}, {"group"}, {"divergence"}});
  for (const model::ChosenFormat& one : chosen) {
    table.add_row({joined_names(one.names), std::to_string(one.format.bits), std::to_string(one.format.group_size),
                   fmt::format("{:.5f}", one.divergence)});
  }
  return table;
}

nlohmann::ordered_json choice_json(const std::vector<model::ChosenFormat>& chosen) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const model::ChosenFormat& one : chosen) {
    json.push_back({{"layers", one.names},
                    {"bits", one.format.bits},
                    {"group_size", one.format.group_size},
                    {"divergence", one.divergence}});
  }
  return json;
}

int dry_run(const Options& options) {
  const io::CheckpointReport before = io::inspect_checkpoint(options.source);
  const io::CheckpointReport plan = io::plan_quantization(options.source, options.quantize);
  if (options.json) {
    nlohmann::ordered_json json = report_json(plan);
    json["bytes_before"] = before.bytes;
    json["dry_run"] = true;
    print_json(json);
    return 0;
  }
  print_table(layer_table(plan));
  print("\n");
  print_summary(before, plan);
  print("nothing written (--dry-run)\n");
  return 0;
}

int run(const Options& options) {
  if (options.dry_run) return dry_run(options);
  const io::CheckpointReport before = io::inspect_checkpoint(options.source);
  ThreadPool threads(options.threads);
  double seconds = 0;
  model::CalibratedReport calibrated;
  io::CheckpointReport after;
  if (!is_calibrated(options.quantize.method)) {
    ProgressBar bar("quantize");
    after = io::quantize_checkpoint(options.source, options.target, options.quantize, &threads, bar.observer());
    seconds = bar.seconds();
  } else {
    const std::string text = read_text(options.calibration, true);
    ProgressBar bar("quantize", Unit::kShares);
    const model::CalibrationText calibration{text, options.calibration == "-" ? "standard input" : options.calibration,
                                             options.calibration_tokens};
    try {
      calibrated = model::quantize_calibrated(options.source, options.target, options.quantize, calibration, &threads,
                                              bar.observer());
    } catch (const Interrupted& interrupt) {
      const std::filesystem::path folder = model::unfinished_folder(options.target);
      if (!io::is_folder(folder)) throw;
      throw Interrupted{interrupt.signal, fmt::format("finished blocks are kept in {}: the same command goes on from "
                                                      "there",
                                                      folder.string())};
    }
    after = calibrated.checkpoint;
    seconds = bar.seconds();
  }
  const double rate = static_cast<double>(before.bytes) / std::max(seconds, 1e-9);
  if (options.json) {
    nlohmann::ordered_json json = report_json(after);
    json["bytes_before"] = before.bytes;
    json["dry_run"] = false;
    json["seconds"] = seconds;
    json["bytes_per_second"] = rate;
    if (calibrated.tokens > 0) {
      json["calibration_tokens"] = calibrated.tokens;
      json["resumed_blocks"] = calibrated.resumed_blocks;
    }
    if (!calibrated.chosen.empty()) json["chosen"] = choice_json(calibrated.chosen);
    print_json(json);
    return 0;
  }
  if (!calibrated.chosen.empty()) {
    print_table(choice_table(calibrated.chosen));
    print("\n");
  }
  print_summary(before, after);
  print("time         {}, {}/s of input with {} {}\n", human_seconds(seconds), human_bytes(rate), threads.size(),
        threads.size() == 1 ? "thread" : "threads");
  if (calibrated.tokens > 0) {
    print("calibration  {} tokens of {}\n", human_count(calibrated.tokens), options.calibration);
  }
  if (calibrated.resumed_blocks > 0) {
    print("resumed      {} of {} blocks were finished by an earlier run\n", calibrated.resumed_blocks,
          calibrated.blocks);
  }
  print("written to   {}\n", options.target);
  return 0;
}

}  // namespace

void add_quantize(CLI::App& app, Command& chosen) {
  auto options = std::make_shared<Options>();
  io::QuantizeOptions& quantize = options->quantize;
  CLI::App* command =
      app.add_subcommand("quantize", "Quantize a checkpoint: round weights to a table of 2^bits values");
  command->add_option("source", options->source, "Hugging Face folder or .safetensors file to read")
      ->required()
      ->type_name("SRC");
  command->add_option("target", options->target, "Folder to write; appears when everything is done")->type_name("DST");
  CLI::Option* bits =
      command->add_option("-b,--bits", quantize.bits, "Bits of a code, 2 to 8 (default: 4, or the file's)")
          ->check(CLI::Range(2, 8).description(""))
          ->type_name("N");
  command
      ->add_option("-c,--codebook", quantize.codebook,
                   fmt::format("Where the table comes from: nf (NormalFloat, the default), int, fp, kmeans (fitted to "
                               "each matrix), or a JSON file {{\"bits\": 3, \"values\": [8 numbers]}}. All names: {}",
                               fmt::join(io::codebook_names(), ", ")))
      ->type_name("NAME|FILE");
  command
      ->add_option("--target-bits", options->target_bits,
                   "In place of --bits: at most so many bits a weight on average, scales and tables counted, over all "
                   "quantized layers. Each gets 2, 3 or 4 bits and a group size (without --group-size, which fixes "
                   "it), chosen by what rounding it does to the predictions of the calibration text. Needs "
                   "--calibration; the report shows the choice")
      ->check([](const std::string& text) {
        double value = 0;
        const bool fits = CLI::detail::lexical_cast(text, value) && value >= 2 && value <= 8;
        return fits ? std::string() : "expected a number from 2 to 8, found '" + text + "'";
      })
      ->type_name("BITS");
  CLI::Option* group_size =
      command
          ->add_option("-g,--group-size", quantize.group_size,
                       "Weights that share a scale: 32, 64 (default), 128, 256, or -1 for a whole row")
          ->check(CLI::IsMember({32, 64, 128, 256, -1}).description(""))
          ->type_name("N");
  CLI::Option* method =
      command
          ->add_option(
              "--method", quantize.method,
              "How codes and scales are found: rtn (round to nearest, the default without --calibration), mse (scales "
              "and a table for each matrix that leave little squared error in the weights), awq (inputs scaled so that "
              "rounding hurts the large ones less, any table; changes norms), gptq (error feedback, any table) or ldlq "
              "(scales, table and codes learned; the best, and the default with --calibration). awq, gptq and ldlq "
              "need --calibration. Learned NormalFloat, nfl, is in the Python package: python -m flute.tune --method "
              "nfl")
          ->check(CLI::IsMember({"rtn", "mse", "awq", "gptq", "ldlq", "nfl"}).description(""))
          ->type_name("NAME");
  command
      ->add_option("--calibration", options->calibration,
                   "UTF-8 text like what the model will read, or - for standard input; a line of one NUL character "
                   "ends a document. Llama-3 and Gemma-2 models")
      ->type_name("TEXT");
  command
      ->add_option("--calibration-tokens", options->calibration_tokens,
                   "Tokens to take from it, in windows of 512 spread over the text (default: 65536)")
      ->check(CLI::Range(int64_t{512}, int64_t{1} << 30).description(""))
      ->type_name("N");
  add_dtype(*command, "--scale-dtype", quantize.scale_dtype, "Type of the scales");
  command
      ->add_option("--clip", quantize.clip,
                   "Multiply the largest magnitude of a group by this before scaling, 0 < clip <= 1 (default: 1)")
      ->check([](const std::string& text) {
        float clip = 0;
        const bool fits = CLI::detail::lexical_cast(text, clip) && clip > 0 && clip <= 1;
        return fits ? std::string() : "expected a number above 0 and at most 1, found '" + text + "'";
      })
      ->type_name("FACTOR");
  command
      ->add_option("--include", quantize.include,
                   "Also quantize matrices whose name matches this regular expression, e.g. lm_head (may be repeated)")
      ->type_name("REGEX")
      ->allow_extra_args(false);
  command
      ->add_option("--exclude", quantize.exclude,
                   "Leave layers as they are whose name matches this regular expression (may be repeated)")
      ->type_name("REGEX")
      ->allow_extra_args(false);
  command
      ->add_option("--layer-bits", options->layer_bits,
                   "Other bits for layers whose name matches; the first match wins (may be repeated)")
      ->type_name("REGEX=N")
      ->allow_extra_args(false);
  command->add_flag("--overwrite", quantize.overwrite,
                    "Replace DST if it exists, and forget finished blocks of another run for it");
  command->add_flag("--dry-run", options->dry_run, "Show what each layer would become, write nothing");
  add_threads(*command, options->threads);
  add_json(*command, options->json);
  command->footer(
      "--bits 4 alone means NormalFloat, groups of 64, fp16 scales, the linear layers of the blocks; head and\n"
      "embedding stay. Other files of the folder are carried over. A run with --calibration that was ended early goes\n"
      "on behind the last finished block when the same command is given again (DST.flute-unfinished holds those).\n\n"
      "Examples:\n"
      "  flute quantize Llama-3-8B Llama-3-8B-nf4 --bits 4\n"
      "  flute quantize Llama-3-8B mixed --bits 3 --codebook kmeans --layer-bits 'down_proj=4' --include lm_head\n"
      "  flute quantize Llama-3-8B Llama-3-8B-3-bit --bits 3 --calibration text.txt\n"
      "  flute quantize Llama-3-8B Llama-3-8B-3.25-bit --target-bits 3.25 --calibration text.txt");
  command->callback([options, bits, group_size, method, &chosen] {
    options->group_size_given = group_size->count() > 0;
    options->bits_given = bits->count() > 0;
    options->method_given = method->count() > 0;
    complete(*options);
    chosen = [options] { return run(*options); };
  });
}

}  // namespace flute::cli
