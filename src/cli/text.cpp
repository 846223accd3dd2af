#include "cli/text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/fail.hpp"

namespace flute::cli {
namespace {

/// Three significant digits without an exponent for 0 <= value < 1000.
std::string three_digits(double value) {
  if (value < 9.995) return fmt::format("{:.2f}", value);
  if (value < 99.95) return fmt::format("{:.1f}", value);
  return fmt::format("{:.0f}", value);
}

bool continues_code_point(char c) { return (static_cast<unsigned char>(c) & 0xc0u) == 0x80u; }

/// Byte position of code point number `count`.
size_t code_point_offset(std::string_view text, size_t count) {
  size_t position = 0;
  while (position < text.size()) {
    if (!continues_code_point(text[position]) && count-- == 0) break;
    ++position;
  }
  return position;
}

}  // namespace

std::string human_bytes(double bytes) {
  if (bytes < 1000) return fmt::format("{:.0f} B", bytes);
  size_t unit = 0;
  constexpr std::string_view kUnits[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  while (bytes >= 999.5 && unit + 1 < std::size(kUnits)) {
    bytes /= 1000;
    ++unit;
  }
  return fmt::format("{} {}", three_digits(bytes), kUnits[unit]);
}

std::string human_seconds(double seconds) {
  if (!(seconds < 1e9)) return "?";
  if (seconds < 59.95) return fmt::format("{} s", three_digits(seconds));
  const auto whole = static_cast<int64_t>(std::lround(seconds));
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

std::string human_count(int64_t count) {
  std::string digits = std::to_string(count);
  const size_t first = count < 0 ? 1 : 0;
  for (size_t i = digits.size(); i > first + 3;) {
    i -= 3;
    digits.insert(i, ",");
  }
  return digits;
}

std::string human_number(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const double magnitude = std::abs(value);
  if (magnitude == 0) return "0";
  if (magnitude < 1e-4 || magnitude >= 1e7) return fmt::format("{:.3e}", value);
  const int exponent = static_cast<int>(std::floor(std::log10(magnitude)));
  return fmt::format("{:.{}f}", value, std::max(0, 3 - exponent));
}

size_t display_width(std::string_view text) {
  size_t width = 0;
  for (const char c : text) width += continues_code_point(c) ? 0 : 1;
  return width;
}

std::string shorten(std::string_view text, size_t width) {
  const size_t columns = display_width(text);
  if (columns <= width) return std::string(text);
  if (width < 3) return std::string(text.substr(0, code_point_offset(text, width)));
  // The end of a name tells more than its start ("...layers.17.mlp.down_proj"), so it gets the odd column.
  const size_t head = (width - 1) / 2;
  const size_t tail = width - 1 - head;
  return fmt::format("{}…{}", text.substr(0, code_point_offset(text, head)),
                     text.substr(code_point_offset(text, columns - tail)));
}

std::string wrap(std::string_view text, size_t width) {
  std::string out;
  size_t column = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    const size_t columns = display_width(text.substr(0, end));
    if (column > 0 && column + 1 + columns > width) {
      out += '\n';
      column = 0;
    } else if (column > 0) {
      out += ' ';
      ++column;
    }
    out += text.substr(0, end);
    column += columns;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

bool natural_less(std::string_view a, std::string_view b) {
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (!is_digit(a[i]) || !is_digit(b[j])) {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i, ++j;
      continue;
    }
    // Two numbers: without leading zeros the longer one is the larger, of equal length the alphabet decides.
    while (i < a.size() && a[i] == '0') ++i;
    while (j < b.size() && b[j] == '0') ++j;
    const size_t start_a = i, start_b = j;
    while (i < a.size() && is_digit(a[i])) ++i;
    while (j < b.size() && is_digit(b[j])) ++j;
    if (i - start_a != j - start_b) return i - start_a < j - start_b;
    const int order = a.substr(start_a, i - start_a).compare(b.substr(start_b, j - start_b));
    if (order != 0) return order < 0;
  }
  return a.size() - i < b.size() - j;
}

std::string base_name(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::path absolute = std::filesystem::absolute(path, error).lexically_normal();
  if (!absolute.has_filename()) absolute = absolute.parent_path();
  return absolute.has_filename() ? absolute.filename().string() : path.string();
}

std::string read_text(const std::filesystem::path& path, bool allow_stdin) {
  const bool from_stdin = allow_stdin && path == "-";
  const std::string name = from_stdin ? "standard input" : path.string();
  const auto close = [](std::FILE* file) {
    if (file != stdin) std::fclose(file);
  };
  const std::unique_ptr<std::FILE, decltype(close)> file(from_stdin ? stdin : std::fopen(path.c_str(), "rb"), close);
  if (!file) fail(ErrorCode::kIo, "{}: cannot open: {}", name, std::strerror(errno));
  std::string text;
  char buffer[65536];
  while (const size_t count = std::fread(buffer, 1, sizeof buffer, file.get())) text.append(buffer, count);
  if (std::ferror(file.get()) != 0) fail(ErrorCode::kIo, "{}: cannot read: {}", name, std::strerror(errno));
  return text;
}

}  // namespace flute::cli
