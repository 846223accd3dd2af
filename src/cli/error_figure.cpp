#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cli/figures.hpp"
#include "cli/svg.hpp"
#include "cli/text.hpp"

namespace flute::cli {
namespace {

constexpr double kCellHeight = 17;
constexpr double kLabelGap = 8;

/// Kinds from the block's input to its output; others follow by name.
constexpr std::array<std::string_view, 10> kKnownKinds = {"q",    "k",  "v",       "qkv",  "o",
                                                          "gate", "up", "gate_up", "down", "fc1"};

size_t kind_rank(std::string_view kind) {
  return static_cast<size_t>(std::find(kKnownKinds.begin(), kKnownKinds.end(), kind) - kKnownKinds.begin());
}

/// The mean error of the layers that share a cell (the experts of a mixture), and how many they are.
struct Cell {
  double sum = 0;
  int count = 0;
  double mean() const { return sum / count; }
};

struct Strip {
  std::map<std::pair<std::string, int64_t>, Cell> cells;  // kind, layer
  std::vector<std::string> kinds;                         // rows, top to bottom
  int64_t layers = 1;                                     // columns
  std::string worst;
  double smallest = HUGE_VAL, largest = 0;
};

Strip make_strip(const io::CheckpointReport& report) {
  Strip strip;
  std::set<std::string> kinds;
  for (const io::LayerReport& layer : report.layers) {
    if (!layer.relative_error || !std::isfinite(*layer.relative_error)) continue;
    const double error = *layer.relative_error;
    const LayerPlace place = layer_place(layer.name);
    const int64_t column = std::max<int64_t>(place.layer, 0);
    Cell& cell = strip.cells[{place.kind, column}];
    cell.sum += error;
    ++cell.count;
    kinds.insert(place.kind);
    strip.layers = std::max(strip.layers, column + 1);
    strip.smallest = std::min(strip.smallest, error);
    if (error >= strip.largest) strip.worst = layer.name;
    strip.largest = std::max(strip.largest, error);
  }
  strip.kinds.assign(kinds.begin(), kinds.end());
  std::stable_sort(strip.kinds.begin(), strip.kinds.end(),
                   [](const std::string& a, const std::string& b) { return kind_rank(a) < kind_rank(b); });
  return strip;
}

size_t heat_step(const Scale& scale, double error) {
  const double step = scale(std::clamp(error, scale.low, scale.high));
  return std::min(static_cast<size_t>(std::max(step, 0.0)), kHeatSteps - 1);
}

std::string draw_strip(const Strip& strip, const Scale& scale, double cell_width, double label_width) {
  const double left = label_width + kLabelGap;
  const double width = left + static_cast<double>(strip.layers) * cell_width + 10;
  const double bottom = static_cast<double>(strip.kinds.size()) * kCellHeight;
  std::string svg = fmt::format(
      R"(<svg viewBox="0 0 {0} {1}" style="width:{0}px" role="img" aria-label="Relative error of each layer">)",
      coordinate(width), coordinate(bottom + 20));
  const double gap = cell_width > 12 ? 2 : 1;
  for (size_t row = 0; row < strip.kinds.size(); ++row) {
    const std::string& kind = strip.kinds[row];
    const double y = static_cast<double>(row) * kCellHeight;
    svg += fmt::format(R"(<text class="soft" x="{}" y="{}" text-anchor="end">{}</text>)", coordinate(label_width),
                       coordinate(y + 12.5), escape_html(shorten(kind, 14)));
    for (int64_t layer = 0; layer < strip.layers; ++layer) {
      const auto found = strip.cells.find({kind, layer});
      const double x = left + static_cast<double>(layer) * cell_width;
      const std::string box = fmt::format(R"(x="{}" y="{}" width="{}" height="{}" rx="1.5")", coordinate(x),
                                          coordinate(y), coordinate(cell_width - gap), coordinate(kCellHeight - 2));
      if (found == strip.cells.end()) {
        svg += fmt::format(R"(<rect class="none" {}/>)", box);
        continue;
      }
      const Cell& cell = found->second;
      const std::string several = cell.count > 1 ? fmt::format(" (mean of {})", cell.count) : "";
      svg += fmt::format(R"(<rect class="h{}" {}><title>layer {} {}: {:.4f}{}</title></rect>)",
                         heat_step(scale, cell.mean()), box, layer, escape_html(kind), cell.mean(), several);
    }
  }
  // A label every so many layers that neighbours keep clear of each other.
  int64_t every = 1;
  for (const int64_t step : {2, 4, 5, 10, 20, 50, 100}) {
    if (static_cast<double>(every) * cell_width < 22) every = step;
  }
  for (int64_t layer = 0; layer < strip.layers; layer += every) {
    svg += fmt::format(R"(<text class="soft" x="{}" y="{}" text-anchor="middle">{}</text>)",
                       coordinate(left + (static_cast<double>(layer) + 0.5) * cell_width - gap / 2),
                       coordinate(bottom + 14), layer);
  }
  return svg + "</svg>";
}

std::string draw_legend(const Scale& scale) {
  constexpr double kStep = 26, kLeft = 12, kHeight = 12;
  const double width = 2 * kLeft + kStep * kHeatSteps;
  std::string svg = fmt::format(R"(<svg style="width:{0}px" viewBox="0 0 {0} 34">)", coordinate(width));
  for (size_t i = 0; i < kHeatSteps; ++i) {
    svg += fmt::format(R"(<rect class="h{}" x="{}" y="0" width="{}" height="{}"/>)", i,
                       coordinate(kLeft + kStep * static_cast<double>(i)), kStep, kHeight);
  }
  const Scale place{scale.low, scale.high, kLeft, width - kLeft, true};
  for (const double tick : log_ticks(scale.low, scale.high, 7)) {
    svg += fmt::format(
        R"(<line class="tick" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/><text class="soft" x="{0}" y="{3}" text-anchor="middle">{4}</text>)",
        coordinate(place(tick)), kHeight, kHeight + 5, kHeight + 19, tick_label(tick));
  }
  return svg + "</svg>";
}

}  // namespace

LayerPlace layer_place(std::string_view name) {
  LayerPlace place;
  std::string_view last = name;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    last = name.substr(begin, end - begin);
    int64_t number = 0;
    const auto [stopped, error] = std::from_chars(last.data(), last.data() + last.size(), number);
    constexpr int64_t kMostLayers = 10000;  // a larger number is part of a name, not a layer
    const bool is_number = error == std::errc() && stopped == last.data() + last.size() && number >= 0;
    if (place.layer < 0 && is_number && number < kMostLayers) place.layer = number;
    begin = end + 1;
  }
  constexpr std::string_view kSuffix = "_proj";
  if (place.layer < 0) last = name;
  if (last.size() > kSuffix.size() && last.ends_with(kSuffix)) last.remove_suffix(kSuffix.size());
  place.kind = last;
  return place;
}

std::string error_figure(const Comparison& comparison) {
  std::vector<std::pair<size_t, Strip>> strips;
  double low = HUGE_VAL, high = 0;
  int64_t layers = 1;
  size_t label = 4;
  for (size_t i = 0; i < comparison.models.size(); ++i) {
    Strip strip = make_strip(comparison.models[i].checkpoint);
    if (strip.cells.empty()) continue;
    for (const auto& [place, cell] : strip.cells) {
      if (cell.mean() > 0) low = std::min(low, cell.mean());
      high = std::max(high, cell.mean());
    }
    for (const std::string& kind : strip.kinds) label = std::max(label, std::min<size_t>(display_width(kind), 14));
    layers = std::max(layers, strip.layers);
    strips.emplace_back(i, std::move(strip));
  }
  if (strips.empty()) return "";
  if (!(low < HUGE_VAL)) low = high = 1e-3;                 // every error is zero
  const double spread = std::max(1.0, 1.5 / (high / low));  // a scale that shows noise as colour would mislead
  const Scale scale{low / std::sqrt(spread), high * std::sqrt(spread), 0, static_cast<double>(kHeatSteps), true};
  const double cell_width = std::clamp(860.0 / static_cast<double>(layers), 9.0, 34.0);

  std::string html = fmt::format(
      R"(<p class="legend"><span><em>‖W − W<sub>q</sub>‖ / ‖W‖, logarithmic</em></span><span>{}</span></p><div class="strips">)",
      draw_legend(scale));
  for (const auto& entry : strips) {
    const ModelFacts& facts = comparison.models[entry.first];
    const Strip& strip = entry.second;
    html += fmt::format(
        R"(<figure><figcaption><b class="tag">{}</b> <span class="name">{}</span></figcaption>{}<p class="small">{:.4f} to {:.4f}, largest in {}</p></figure>)",
        entry.first + 1, escape_html(facts.name),
        draw_strip(strip, scale, cell_width, 7.4 * static_cast<double>(label) + 2), strip.smallest, strip.largest,
        escape_html(strip.worst));
  }
  return html + "</div>";
}

}  // namespace flute::cli
