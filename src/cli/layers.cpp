#include "cli/layers.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "cli/text.hpp"

namespace flute::cli {
namespace {

using io::LayerReport;

bool is_listed_layer(const LayerReport& layer, bool any_quantized) {
  return any_quantized ? layer.quantized : layer.n > 0 && layer.k > 0;
}

std::string shape_text(const LayerReport& layer) {
  return layer.n > 0 && layer.k > 0 ? fmt::format("{} x {}", layer.n, layer.k) : human_count(layer.elements);
}

std::string error_text(const LayerReport& layer) {
  return layer.relative_error ? fmt::format("{:.4f}", *layer.relative_error) : "";
}

nlohmann::ordered_json layer_json(const LayerReport& layer) {
  nlohmann::ordered_json json;
  json["name"] = layer.name;
  if (layer.n > 0 && layer.k > 0) {
    json["n"] = layer.n;
    json["k"] = layer.k;
  }
  json["bits"] = layer.bits;
  if (layer.quantized) json["group_size"] = layer.group_size;
  json[layer.quantized ? "codebook" : "dtype"] = layer.codebook;
  json["quantized"] = layer.quantized;
  json["elements"] = layer.elements;
  json["bytes"] = layer.bytes;
  json["bits_per_weight"] = layer.bits_per_weight;
  if (layer.relative_error) json["relative_error"] = *layer.relative_error;
  return json;
}

}  // namespace

std::string group_text(const LayerReport& layer) {
  if (!layer.quantized) return "";
  return layer.group_size < 0 ? "row" : std::to_string(layer.group_size);
}

int64_t quantized_count(const io::CheckpointReport& report) {
  return std::count_if(report.layers.begin(), report.layers.end(), [](const auto& layer) { return layer.quantized; });
}

double layer_bits_per_weight(const io::CheckpointReport& report) {
  const bool any_quantized = quantized_count(report) > 0;
  double bytes = 0, elements = 0;
  for (const LayerReport& layer : report.layers) {
    if (!is_listed_layer(layer, any_quantized)) continue;
    bytes += static_cast<double>(layer.bytes);
    elements += static_cast<double>(layer.elements);
  }
  return elements > 0 ? 8 * bytes / elements : 0;
}

Table layer_table(const io::CheckpointReport& report) {
  const bool errors = std::any_of(report.layers.begin(), report.layers.end(),
                                  [](const auto& layer) { return layer.relative_error.has_value(); });
  std::vector<Table::Column> columns = {{"layer", Table::Align::kLeft}, {"shape"}, {"bits"},       {"group"},
                                        {"table", Table::Align::kLeft}, {"bytes"}, {"bits/weight"}};
  if (errors) columns.push_back({"rel. error"});
  Table table(std::move(columns));
  std::vector<LayerReport> layers = report.layers;
  std::stable_sort(layers.begin(), layers.end(),
                   [](const LayerReport& a, const LayerReport& b) { return natural_less(a.name, b.name); });
  for (const LayerReport& layer : layers) {
    std::vector<std::string> row = {layer.name,
                                    shape_text(layer),
                                    std::to_string(layer.bits),
                                    group_text(layer),
                                    layer.codebook,
                                    human_bytes(static_cast<double>(layer.bytes)),
                                    fmt::format("{:.3f}", layer.bits_per_weight)};
    if (errors) row.push_back(error_text(layer));
    table.add_row(std::move(row));
  }
  std::vector<std::string> totals = {"all",
                                     human_count(report.elements),
                                     "",
                                     "",
                                     "",
                                     human_bytes(static_cast<double>(report.bytes)),
                                     fmt::format("{:.3f}", report.bits_per_weight)};
  if (errors) totals.emplace_back();
  table.set_totals(std::move(totals));
  return table;
}

nlohmann::ordered_json report_json(const io::CheckpointReport& report) {
  const bool any_quantized = quantized_count(report) > 0;
  nlohmann::ordered_json json;
  json["quantized"] = any_quantized;
  json["bits_per_weight"] = layer_bits_per_weight(report);
  json["total_bits_per_weight"] = report.bits_per_weight;
  json["bytes"] = report.bytes;
  json["elements"] = report.elements;
  json["layers"] = nlohmann::ordered_json::array();
  json["tensors"] = nlohmann::ordered_json::array();
  for (const LayerReport& layer : report.layers) {
    json[is_listed_layer(layer, any_quantized) ? "layers" : "tensors"].push_back(layer_json(layer));
  }
  return json;
}

}  // namespace flute::cli
