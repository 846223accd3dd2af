#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/fail.hpp"
#include "cli/command.hpp"
#include "cli/inspect_device.hpp"
#include "cli/layer_detail.hpp"
#include "cli/layers.hpp"
#include "cli/options.hpp"
#include "cli/progress.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"
#include "flute/threads.hpp"
#include "io/checkpoint.hpp"
#include "io/pipelines.hpp"

namespace flute::cli {
namespace {

struct Options {
  std::string path, layer, against, device;
  int threads = 0;
  bool json = false;
};

nlohmann::ordered_json detail_json(const LayerDetail& detail) {
  nlohmann::ordered_json json;
  json["name"] = detail.name;
  json["n"] = detail.n;
  json["k"] = detail.k;
  json["bits"] = detail.bits;
  json["group_size"] = detail.group_size;
  json["bytes"] = detail.bytes;
  json["scale_dtype"] = detail.scale_dtype;
  json["smallest_scale"] = detail.smallest_scale;
  json["median_scale"] = detail.median_scale;
  json["largest_scale"] = detail.largest_scale;
  json["offsets"] = detail.has_offsets;
  json["per_row_codebook"] = detail.per_row_codebook;
  json["codebook"] = detail.codebook;
  json["code_counts"] = detail.code_counts;
  return json;
}

/// The layer's name from what the user typed: with or without ".weight".
std::string find_layer(const io::CheckpointReport& report, std::string name) {
  constexpr std::string_view kSuffix = ".weight";
  if (name.size() > kSuffix.size() && name.ends_with(kSuffix)) name.resize(name.size() - kSuffix.size());
  for (const io::LayerReport& layer : report.layers) {
    if (layer.name == name || layer.name == name + std::string(kSuffix)) return layer.name;
  }
  return {};
}

int show_layer(const Options& options, io::CheckpointReport report) {
  const std::string name = find_layer(report, options.layer);
  const auto found = std::find_if(report.layers.begin(), report.layers.end(),
                                  [&name](const io::LayerReport& layer) { return layer.name == name; });
  if (found == report.layers.end()) {
    fail(ErrorCode::kInvalidArgument, "{}: expected one of the layers that 'flute inspect {}' lists, found '{}'",
         options.path, options.path, options.layer);
  }
  if (!found->quantized) {
    io::CheckpointReport one = report;
    one.layers = {*found};
    one.bytes = found->bytes;
    one.elements = found->elements;
    one.bits_per_weight = found->bits_per_weight;
    if (options.json) {
      print_json(report_json(one));
    } else {
      print_table(layer_table(one));
    }
    return 0;
  }
  const io::Checkpoint checkpoint = io::Checkpoint::open(options.path);
  const LayerDetail detail = layer_detail(name, checkpoint.packed_layer(name));
  if (options.json) {
    nlohmann::ordered_json json = detail_json(detail);
    if (found->relative_error) json["relative_error"] = *found->relative_error;
    print_json(json);
    return 0;
  }
  write_out(render_detail(detail));
  if (found->relative_error) print("\n  relative error to {}: {:.5f}\n", options.against, *found->relative_error);
  return 0;
}

int run(const Options& options) {
  ThreadPool threads(options.threads);
  std::optional<std::filesystem::path> against;
  if (!options.against.empty()) against = options.against;
  std::optional<Device> device;
  if (!options.device.empty()) device = parse_device(options.device);
  io::CheckpointReport report;
  {
    ProgressBar bar("compare");
    report = io::inspect_checkpoint(options.path, against, &threads, bar.observer());
  }
  const bool any_error = std::any_of(report.layers.begin(), report.layers.end(),
                                     [](const auto& layer) { return layer.relative_error.has_value(); });
  if (against && !any_error && quantized_count(report) > 0) {
    note("{}: method awq moved scales from layer to layer: no layer has an error of its own to show", options.path);
  }
  if (!options.layer.empty()) return show_layer(options, std::move(report));
  std::optional<DeviceReport> on_device;
  if (device) on_device = inspect_on_device(io::Checkpoint::open(options.path), *device, options.device);
  if (options.json) {
    nlohmann::ordered_json json = report_json(report);
    if (on_device) json["on_device"] = device_json(*on_device);
    print_json(json);
    return 0;
  }
  print_table(layer_table(report));
  const int64_t quantized = quantized_count(report);
  if (quantized > 0) {
    print("\n{} quantized layers at {:.3f} bits/weight\n", quantized, report.quantized_bits_per_weight);
  }
  if (on_device) print_device_report(*on_device);
  return 0;
}

}  // namespace

void add_inspect(CLI::App& app, Command& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("inspect", "Show what a checkpoint holds: shapes, bits, tables, bytes");
  command->add_option("path", options->path, "Checkpoint folder or .safetensors file, quantized or not")
      ->required()
      ->type_name("PATH");
  CLI::Option* const layer =
      command
          ->add_option("--layer", options->layer, "Only this layer: its table, scales and how often each code occurs")
          ->type_name("NAME");
  command
      ->add_option("--against", options->against,
                   "The original checkpoint: also show each layer's relative error ||W - Wq|| / ||W||")
      ->type_name("ORIGINAL");
  command
      ->add_option("--device", options->device,
                   "cpu, cuda or cuda:N: also load every quantized layer there, and tell which it cannot take")
      ->excludes(layer)
      ->type_name("DEVICE");
  add_threads(*command, options->threads);
  add_json(*command, options->json);
  command->footer(
      "With --json, \"layers\" are the quantized layers (of a plain checkpoint: all its matrices) and\n"
      "\"bits_per_weight\" is theirs; \"tensors\" are the others, \"total_bits_per_weight\" counts everything.\n\n"
      "Examples:\n"
      "  flute inspect Llama-3-8B-nf4 --against Llama-3-8B\n"
      "  flute inspect Llama-3-8B-nf4 --layer model.layers.0.mlp.down_proj");
  command->callback([options, &chosen] { chosen = [options] { return run(*options); }; });
}

}  // namespace flute::cli
