#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cli/figures.hpp"
#include "cli/svg.hpp"
#include "cli/text.hpp"

namespace flute::cli {
namespace {

constexpr double kWidth = 960, kHeight = 400;
constexpr double kLeft = 64, kRight = 20, kTop = 34, kBottom = 50;
constexpr double kDot = 4, kBadge = 9;
constexpr double kLogarithmicFrom = 2.5;  // a ratio of perplexities from which a linear axis would flatten the low ones

struct Point {
  double x, y;
};

struct Mark {
  size_t model;  // index; its number on the page is one higher
  size_t series;
  Point at;
};

double distance(Point a, Point b) { return std::hypot(a.x - b.x, a.y - b.y); }

/// A place for the badge near its dot that touches no dot, no other badge and not the edge; the nearest that is free.
Point place_badge(const Mark& mark, const std::vector<Mark>& marks, const std::vector<Point>& taken) {
  constexpr int kDirections = 8;
  constexpr int kRings = 6;
  constexpr double kPi = 3.14159265358979;
  const auto is_free = [&](Point spot) {
    if (spot.x < kLeft + kBadge || spot.x > kWidth - kRight - kBadge) return false;
    if (spot.y < kTop + kBadge || spot.y > kHeight - kBottom - kBadge) return false;
    const bool on_dot = std::any_of(marks.begin(), marks.end(),
                                    [spot](const Mark& other) { return distance(spot, other.at) < kBadge + kDot + 2; });
    const bool on_badge =
        std::any_of(taken.begin(), taken.end(), [spot](Point other) { return distance(spot, other) < 2 * kBadge + 2; });
    return !on_dot && !on_badge;
  };
  for (int ring = 0; ring < kRings; ++ring) {
    for (int direction = 0; direction < kDirections; ++direction) {
      const double angle = -kPi / 4 + direction * 2 * kPi / kDirections;  // up and right first
      const double reach = 19 + 12.0 * ring;
      const Point spot{mark.at.x + reach * std::cos(angle), mark.at.y + reach * std::sin(angle)};
      if (is_free(spot)) return spot;
    }
  }
  return {mark.at.x, mark.at.y - 19};
}

std::string series_name(const ModelFacts& facts) {
  if (facts.group.empty()) return facts.codebook;
  return facts.codebook + (facts.group == "row" ? ", one scale a row" : ", group " + facts.group);
}

struct Axes {
  Scale x, y;
  std::string svg;
};

Axes draw_axes(double low_bits, double high_bits, double low, double high, bool logarithmic) {
  Axes axes;
  axes.x = {low_bits, high_bits, kLeft, kWidth - kRight, false};
  axes.y = {low, high, kHeight - kBottom, kTop, logarithmic};
  for (const double tick : linear_ticks(low_bits, high_bits, 10)) {
    axes.svg += fmt::format(
        R"(<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/><text class="soft" x="{0}" y="{3}" text-anchor="middle">{4}</text>)",
        coordinate(axes.x(tick)), coordinate(kTop), coordinate(kHeight - kBottom), coordinate(kHeight - kBottom + 18),
        tick_label(tick));
  }
  for (const double tick : axes.y.logarithmic ? log_ticks(low, high, 8) : linear_ticks(low, high, 7)) {
    axes.svg += fmt::format(
        R"(<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/><text class="soft" x="{3}" y="{4}" text-anchor="end">{5}</text>)",
        coordinate(kLeft), coordinate(kWidth - kRight), coordinate(axes.y(tick)), coordinate(kLeft - 8),
        coordinate(axes.y(tick) + 4), tick_label(tick));
  }
  axes.svg += fmt::format(
      R"(<text class="soft" x="{}" y="{}" text-anchor="middle">bits per weight of the quantized layers, scales and tables included</text>)",
      coordinate((kLeft + kWidth - kRight) / 2), coordinate(kHeight - 8));
  axes.svg += fmt::format(R"(<text class="soft" x="{}" y="18">perplexity{}</text>)", coordinate(8.0),
                          axes.y.logarithmic ? " (logarithmic)" : "");
  return axes;
}

}  // namespace

std::string perplexity_figure(const Comparison& comparison) {
  double low_bits = HUGE_VAL, high_bits = 0, low = HUGE_VAL, high = 0;
  std::vector<size_t> shown;
  for (size_t i = 0; i < comparison.models.size(); ++i) {
    const ModelFacts& facts = comparison.models[i];
    const bool drawn = facts.quantized || comparison.original == i;
    if (!drawn || !std::isfinite(facts.perplexity) || !(facts.perplexity > 0)) continue;
    low = std::min(low, facts.perplexity);
    high = std::max(high, facts.perplexity);
    if (!facts.quantized) continue;
    low_bits = std::min(low_bits, facts.bits_per_weight);
    high_bits = std::max(high_bits, facts.bits_per_weight);
    shown.push_back(i);
  }
  if (shown.empty()) return "";
  const double pad = std::max(0.3, 0.06 * (high_bits - low_bits));
  // Room above the highest mark for its badge, and below the level of the unquantized model for its label.
  const bool logarithmic = high / low > kLogarithmicFrom;
  const double above = logarithmic ? std::pow(high / low, 0.1) : 1 + std::max(0.1 * (high / low - 1), 0.002);
  const double below = logarithmic ? std::pow(high / low, 0.12) : 1 / (1 - std::max(0.12 * (high / low - 1), 0.002));
  const Axes axes =
      draw_axes(low_bits - pad, high_bits + pad, std::max(low / below, 0.5 * low), high * above, logarithmic);

  std::vector<std::string> series;
  std::vector<Mark> marks;
  for (const size_t i : shown) {
    const ModelFacts& facts = comparison.models[i];
    const auto known = std::find(series.begin(), series.end(), series_name(facts));
    const auto index = static_cast<size_t>(known - series.begin());
    if (known == series.end()) series.push_back(series_name(facts));
    marks.push_back({i, index, {axes.x(facts.bits_per_weight), axes.y(facts.perplexity)}});
  }

  std::string svg = fmt::format(
      R"(<svg viewBox="0 0 {} {}" role="img" aria-label="Perplexity against bits per weight">)", kWidth, kHeight);
  svg += axes.svg;
  std::vector<Point> taken;
  if (comparison.original && std::isfinite(comparison.models[*comparison.original].perplexity)) {
    const ModelFacts& original = comparison.models[*comparison.original];
    const double y = axes.y(original.perplexity);
    svg += fmt::format(
        R"(<line class="level" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/><text class="ink halo" x="{3}" y="{4}">unquantized: {5}</text>)",
        coordinate(kLeft), coordinate(kWidth - kRight), coordinate(y), coordinate(kLeft + 8), coordinate(y + 16),
        human_number(original.perplexity));
    for (const double x : {20.0, 40.0, 60.0, 80.0, 100.0, 120.0}) taken.push_back({kLeft + x, y + 12});
  }
  for (size_t s = 0; s < series.size(); ++s) {
    std::vector<Point> line;
    for (const Mark& mark : marks) {
      if (mark.series == s) line.push_back(mark.at);
    }
    std::sort(line.begin(), line.end(), [](Point a, Point b) { return a.x < b.x; });
    std::string points;
    for (const Point point : line) points += coordinate(point.x) + ',' + coordinate(point.y) + ' ';
    if (line.size() > 1) svg += fmt::format(R"(<polyline class="trend s{}" points="{}"/>)", s % kSeriesColours, points);
  }
  for (const Mark& mark : marks) {
    const ModelFacts& facts = comparison.models[mark.model];
    const Point badge = place_badge(mark, marks, taken);
    taken.push_back(badge);
    svg += fmt::format(
        R"(<g class="s{0}"><title>{1}: {2:.3f} bits/weight, perplexity {3}</title><line class="leader" x1="{4}" y1="{5}" x2="{6}" y2="{7}"/>)",
        mark.series % kSeriesColours, escape_html(facts.name), facts.bits_per_weight, human_number(facts.perplexity),
        coordinate(mark.at.x), coordinate(mark.at.y), coordinate(badge.x), coordinate(badge.y));
    svg += fmt::format(R"(<circle class="dot" cx="{}" cy="{}" r="{}"/>)", coordinate(mark.at.x), coordinate(mark.at.y),
                       kDot);
    svg += fmt::format(
        R"(<circle class="badge" cx="{0}" cy="{1}" r="{2}"/><text class="number" x="{0}" y="{3}" text-anchor="middle">{4}</text></g>)",
        coordinate(badge.x), coordinate(badge.y), kBadge, coordinate(badge.y + 3.8), mark.model + 1);
  }
  svg += "</svg>";

  std::string legend;
  for (size_t s = 0; s < series.size(); ++s) {
    legend += fmt::format(
        R"(<span><svg class="key s{}" viewBox="0 0 10 10"><circle class="dot" cx="5" cy="5" r="5"/></svg>{}</span>)",
        s % kSeriesColours, escape_html(series[s]));
  }
  return fmt::format(R"(<div class="wide">{}</div><p class="legend">{}</p>)", svg, legend);
}

}  // namespace flute::cli
