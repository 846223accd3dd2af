#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cli/figures.hpp"
#include "cli/svg.hpp"
#include "cli/text.hpp"

namespace flute::cli {
namespace {

constexpr double kWidth = 450, kPlotHeight = 150, kTop = 8, kSide = 14;
constexpr size_t kMostLines = 32;  // more lines than this would hide the histogram

std::string draw_histogram(const WeightHistogram& histogram) {
  const Scale x{WeightHistogram::kLow, WeightHistogram::kHigh, kSide, kWidth - kSide, false};
  const double base = kTop + kPlotHeight;
  const size_t tables = histogram.tables.size();
  const double tick_height = tables <= 1 ? 10 : std::max(4.0, 12 - static_cast<double>(tables));
  const double strip_end = base + 6 + tick_height * static_cast<double>(tables);
  const double height = strip_end + 22;
  std::string svg = fmt::format(
      R"(<svg viewBox="0 0 {0} {1}" role="img" aria-label="Table values over the histogram of the weights">)",
      coordinate(kWidth), coordinate(height));

  const double highest = std::max(1e-9, *std::max_element(histogram.density.begin(), histogram.density.end()));
  const double bin = (WeightHistogram::kHigh - WeightHistogram::kLow) / static_cast<double>(histogram.density.size());
  std::string path = fmt::format("M{} {}", coordinate(x(WeightHistogram::kLow)), coordinate(base));
  for (size_t i = 0; i < histogram.density.size(); ++i) {
    const double left = WeightHistogram::kLow + bin * static_cast<double>(i);
    const double y = base - kPlotHeight * histogram.density[i] / highest;
    path += fmt::format("L{} {}L{} {}", coordinate(x(left)), coordinate(y), coordinate(x(left + bin)), coordinate(y));
  }
  path += fmt::format("L{} {}Z", coordinate(x(WeightHistogram::kHigh)), coordinate(base));
  svg += fmt::format(R"(<path class="area" d="{}"/>)", path);

  for (size_t t = 0; t < tables; ++t) {
    const double top = base + 4 + tick_height * static_cast<double>(t);
    const bool lines = tables == 1 && histogram.tables[t].size() <= kMostLines;
    for (const double value : histogram.tables[t]) {
      if (value < WeightHistogram::kLow || value > WeightHistogram::kHigh) continue;
      svg += fmt::format(R"(<line class="value" x1="{0}" x2="{0}" y1="{1}" y2="{2}"><title>{3:.4f}</title></line>)",
                         coordinate(x(value)), coordinate(lines ? kTop : top), coordinate(top + tick_height), value);
    }
  }
  svg += fmt::format(R"(<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>)", coordinate(kSide),
                     coordinate(kWidth - kSide), coordinate(base));
  for (const double tick : {-1.0, -0.5, 0.0, 0.5, 1.0}) {
    svg += fmt::format(R"(<text class="soft" x="{}" y="{}" text-anchor="middle">{}</text>)", coordinate(x(tick)),
                       coordinate(strip_end + 14), tick_label(tick));
  }
  return svg + "</svg>";
}

}  // namespace

std::string histogram_figure(const Comparison& comparison) {
  std::string html;
  for (size_t i = 0; i < comparison.models.size(); ++i) {
    const ModelFacts& facts = comparison.models[i];
    if (!facts.histogram || facts.histogram->layers == 0) continue;
    const size_t tables = facts.histogram->tables.size();
    const std::string sampled = tables == 1 ? fmt::format("one table, weights of {} layers", facts.histogram->layers)
                                            : fmt::format("tables of {} layers, one below the other", tables);
    html += fmt::format(
        R"(<figure><figcaption><b class="tag">{}</b> <span class="name">{}</span></figcaption>{}<p class="small">{}</p></figure>)",
        i + 1, escape_html(facts.name), draw_histogram(*facts.histogram), sampled);
  }
  return html.empty() ? "" : R"(<div class="pair">)" + html + "</div>";
}

}  // namespace flute::cli
