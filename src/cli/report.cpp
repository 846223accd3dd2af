#include "cli/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "cli/figures.hpp"
#include "cli/svg.hpp"
#include "cli/text.hpp"

namespace flute::cli {
namespace {

constexpr std::string_view kStyle = R"(
:root { color-scheme: light dark; --page: #f4f5f7; --card: #ffffff; --ink: #1c2430; --soft: #5d6875; --rule: #e3e7ec;
  --level: #1c2430; --area: #c9d3df; --none: #eef0f3; --bar: #d5e3f5;
  --s0: #2463c2; --s1: #c45d12; --s2: #1a7f5a; --s3: #8447b8; --s4: #b3315f; --s5: #5f6b1d; }
@media (prefers-color-scheme: dark) {
  :root { --page: #10141a; --card: #181e26; --ink: #e6ebf2; --soft: #98a4b3; --rule: #2b3441;
    --level: #e6ebf2; --area: #3b4859; --none: #222a34; --bar: #24405f;
    --s0: #74a9f5; --s1: #f0a058; --s2: #56c79a; --s3: #c193f0; --s4: #f283a9; --s5: #c0cc66; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 24px 48px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 0 0 2px; }
p { margin: 0; }
.lead, .note, .small { color: var(--soft); }
.note { margin-bottom: 16px; max-width: 100ch; }
.small { font-size: 12.5px; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 20px 24px 22px; margin-top: 20px; }
.wide { overflow-x: auto; } .wide > svg { min-width: 640px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; font-size: 13px; vertical-align: bottom; }
th, td { text-align: right; padding: 8px 0 8px 18px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th.text, td.text { text-align: left; }
th:first-child, td:first-child { padding-left: 0; }
td.model { white-space: normal; overflow-wrap: anywhere; min-width: 170px; }
td.metered { min-width: 96px; }
td .meter { display: block; height: 4px; margin-top: 3px; border-radius: 2px; background: var(--bar); margin-left: auto; }
.tag { display: inline-block; min-width: 20px; height: 20px; border-radius: 10px; padding: 0 5px; margin-right: 4px;
  background: var(--ink); color: var(--card); font-size: 12px; line-height: 20px; text-align: center; font-weight: 600; }
svg { display: block; width: 100%; max-width: 100%; height: auto; }
svg text { font: 12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
.ink { fill: var(--ink); } .soft { fill: var(--soft); }
.halo { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.grid { stroke: var(--rule); } .axis, .tick { stroke: var(--soft); }
.level { stroke: var(--level); stroke-width: 1.5; stroke-dasharray: 6 4; }
.trend { fill: none; stroke: currentColor; stroke-width: 1.5; opacity: .45; }
.leader { stroke: currentColor; opacity: .6; } .dot { fill: currentColor; }
.badge { fill: var(--card); stroke: currentColor; stroke-width: 1.5; }
svg text.number { fill: currentColor; font-size: 11px; font-weight: 600; }
.area { fill: var(--area); } .value { stroke: var(--s1); stroke-width: 1.2; } .none { fill: var(--none); }
.legend { display: flex; flex-wrap: wrap; gap: 6px 22px; align-items: center; font-size: 13px; color: var(--soft); }
.legend span { display: inline-flex; align-items: center; gap: 7px; max-width: 100%; overflow-wrap: anywhere; }
.legend em { font-style: normal; }
.key { width: 10px; flex: none; }
.strips { display: flex; flex-wrap: wrap; gap: 24px 40px; margin-top: 16px; }
figure { margin: 0; min-width: 0; }
figcaption { margin-bottom: 8px; font-weight: 600; font-size: 14px; overflow-wrap: anywhere; }
.strips figure { max-width: 100%; }
.strips figure { min-width: min(290px, 100%); }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 26px 40px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
footer { color: var(--soft); font-size: 12.5px; margin-top: 18px; }
)";

/// A colour between the three stops of a ramp, 0 <= part <= 1, as "#rrggbb".
std::string ramp_colour(const std::array<std::array<int, 3>, 3>& stops, double part) {
  const size_t segment = part < 0.5 ? 0 : 1;
  const double t = part * 2 - static_cast<double>(segment);
  std::string colour = "#";
  for (size_t channel = 0; channel < 3; ++channel) {
    const double value = stops[segment][channel] * (1 - t) + stops[segment + 1][channel] * t;
    colour += fmt::format("{:02x}", static_cast<int>(std::lround(value)));
  }
  return colour;
}

/// The heat colours: more error is further from the page's background, in both themes.
std::string heat_style() {
  constexpr std::array<std::array<int, 3>, 3> kLight = {{{253, 240, 214}, {238, 139, 74}, {110, 20, 44}}};
  constexpr std::array<std::array<int, 3>, 3> kDark = {{{52, 40, 48}, {184, 74, 62}, {255, 222, 150}}};
  std::string light, dark;
  for (size_t i = 0; i < kHeatSteps; ++i) {
    const double part = static_cast<double>(i) / (kHeatSteps - 1);
    light += fmt::format(".h{} {{ fill: {}; }} ", i, ramp_colour(kLight, part));
    dark += fmt::format(".h{} {{ fill: {}; }} ", i, ramp_colour(kDark, part));
  }
  std::string series;
  for (size_t i = 0; i < kSeriesColours; ++i) series += fmt::format(".s{0} {{ color: var(--s{0}); }} ", i);
  return fmt::format("{}\n{}\n@media (prefers-color-scheme: dark) {{ {}}}\n", series, light, dark);
}

/// A number with a bar below it that shows its share of the largest of the column.
std::string metered(const std::string& text, double value, double largest) {
  const double share = largest > 0 && std::isfinite(value) ? std::clamp(value / largest, 0.0, 1.0) : 0;
  return fmt::format(R"(<td class="metered">{}<span class="meter" style="width:{}%"></span></td>)", text,
                     coordinate(100 * share));
}

std::string table_section(const Comparison& comparison) {
  double most_bytes = 0, fastest = 0;
  for (const ModelFacts& facts : comparison.models) {
    most_bytes = std::max(most_bytes, static_cast<double>(facts.checkpoint.bytes));
    fastest = std::max(fastest, facts.decode_tokens_per_second);
  }
  std::string rows;
  for (size_t i = 0; i < comparison.models.size(); ++i) {
    const ModelFacts& facts = comparison.models[i];
    const auto bytes = static_cast<double>(facts.checkpoint.bytes);
    rows += fmt::format(
        "<tr><td><b class=\"tag\">{}</b></td><td class=\"text model\">{}</td><td class=\"text\">{}</td><td>{}</td>"
        "<td>{:.3f}</td>{}<td>{}</td><td>{}</td>{}</tr>\n",
        i + 1, escape_html(facts.name), escape_html(facts.codebook), escape_html(facts.group), facts.bits_per_weight,
        metered(human_bytes(bytes), bytes, most_bytes), human_number(facts.perplexity),
        change_text(comparison.perplexity_increase(i)),
        metered(human_number(facts.decode_tokens_per_second), facts.decode_tokens_per_second, fastest));
  }
  return "<section><div class=\"wide\"><table><thead><tr><th></th><th class=\"text\">model</th><th class=\"text\">table"
         "</th><th>group</th><th>bits / weight</th><th>size</th><th>perplexity</th><th>change</th><th>decode tokens/s"
         "</th></tr></thead><tbody>\n" +
         rows + "</tbody></table></div></section>\n";
}

std::string section(std::string_view title, std::string_view note, const std::string& body) {
  if (body.empty()) return "";
  return fmt::format("<section><h2>{}</h2><p class=\"note\">{}</p>{}</section>\n", title, note, body);
}

std::string sample_figures(const Comparison& comparison) {
  std::string html;
  for (size_t i = 0; i < comparison.models.size(); ++i) {
    const ModelFacts& facts = comparison.models[i];
    if (facts.sample.empty()) continue;
    html += fmt::format(
        R"(<figure><figcaption><b class="tag">{}</b> <span class="name">{}</span></figcaption><pre>{}</pre></figure>)",
        i + 1, escape_html(facts.name), escape_html(facts.sample));
  }
  return html.empty() ? "" : R"(<div class="pair">)" + html + "</div>";
}

}  // namespace

std::string render_report(const Comparison& comparison) {
  const int64_t predictions = comparison.models.empty() ? 0 : comparison.models.front().predictions;
  std::string html =
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\">\n<title>FLUTE: models compared</title>\n<style>";
  html += kStyle;
  html += heat_style();
  html += "</style>\n</head>\n<body>\n<main>\n";
  html += fmt::format(
      "<h1>{} {} compared</h1>\n<p class=\"lead\">Perplexity on {}: {} predictions in windows of {} tokens. Lower is "
      "better.</p>\n",
      comparison.models.size(), comparison.models.size() == 1 ? "model" : "models", escape_html(comparison.text_name),
      human_count(predictions), comparison.window);
  html += table_section(comparison);
  html += section("Perplexity against size", "Each mark is a quantized model, numbered as in the table.",
                  perplexity_figure(comparison));
  html += section("Error of each layer",
                  "One column for each block, one row for each kind of matrix; all models share the scale. Point at a "
                  "cell for its value.",
                  error_figure(comparison));
  html += section("Tables and weights",
                  "The original weights, each divided by the largest magnitude of its group, and the values that a "
                  "model's table offers them.",
                  histogram_figure(comparison));
  html += section("Samples", "The most probable continuation by each model.", sample_figures(comparison));
  return html + "<footer>Made by flute compare.</footer>\n</main>\n</body>\n</html>\n";
}

}  // namespace flute::cli
