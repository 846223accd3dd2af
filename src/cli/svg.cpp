#include "cli/svg.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace flute::cli {

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default: {
        const auto byte = static_cast<unsigned char>(c);
        const bool forbidden = (byte < 0x20 && c != '\t' && c != '\n' && c != '\r') || byte == 0x7f;
        if (forbidden) {
          out += "\xef\xbf\xbd";
        } else {
          out += c;
        }
      }
    }
  }
  return out;
}

std::string coordinate(double value) {
  if (!std::isfinite(value)) return "0";
  std::string text = fmt::format("{:.2f}", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

double Scale::operator()(double value) const {
  const double part =
      logarithmic ? (std::log(value) - std::log(low)) / (std::log(high) - std::log(low)) : (value - low) / (high - low);
  return start + part * (end - start);
}

std::vector<double> linear_ticks(double low, double high, int count) {
  if (!(low < high) || !std::isfinite(low) || !std::isfinite(high)) return {low};
  // The finest of 1, 2, 5 x 10^n that gives no more than `count` ticks, but always at least two.
  const double magnitude = std::pow(10.0, std::floor(std::log10((high - low) / std::max(count, 2))));
  std::vector<double> ticks;
  for (const double factor : {10.0, 5.0, 2.0, 1.0}) {
    const double step = factor * magnitude;
    std::vector<double> candidate;
    const double tolerance = step * 1e-9;
    for (double i = std::ceil((low - tolerance) / step); i * step <= high + tolerance; ++i) {
      candidate.push_back(i == 0 ? 0.0 : i * step);
    }
    if (ticks.size() >= 2 && candidate.size() > static_cast<size_t>(std::max(count, 2))) break;
    ticks = std::move(candidate);
  }
  return ticks;
}

std::vector<double> log_ticks(double low, double high, int count) {
  const auto collect = [low, high](std::initializer_list<double> factors) {
    std::vector<double> ticks;
    const int first = static_cast<int>(std::floor(std::log10(low)));
    const int last = static_cast<int>(std::ceil(std::log10(high)));
    for (int exponent = first; exponent <= last; ++exponent) {
      for (const double factor : factors) {
        const double tick = factor * std::pow(10.0, exponent);
        if (tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)) ticks.push_back(tick);
      }
    }
    return ticks;
  };
  if (!(low > 0) || !(low < high) || !std::isfinite(high)) return {low};
  const auto limit = static_cast<size_t>(std::max(count, 2));
  std::vector<double> best;
  for (const auto& factors : {std::initializer_list<double>{1}, {1, 3}, {1, 2, 5}, {1, 1.5, 2, 3, 4, 5, 7}}) {
    std::vector<double> ticks = collect(factors);
    if (best.size() >= 2 && ticks.size() > limit) break;
    best = std::move(ticks);
  }
  return best.size() >= 2 ? best : linear_ticks(low, high, count);
}

std::string tick_label(double value) { return fmt::format("{:.6g}", value); }

}  // namespace flute::cli
