#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace flute::cli {

/// "0 B", "999 B", "1.00 kB", "15.3 MB", "3.94 GB": three digits, decimal units.
std::string human_bytes(double bytes);
/// "0.42 s", "12.3 s", "3 min 05 s", "2 h 03 min".
std::string human_seconds(double seconds);
/// A count with thousands separated: "53,144".
std::string human_count(int64_t count);
/// `value` with four significant digits: "6.508", "16.25", "1234", "0.09123"; "inf" and "nan" as such.
std::string human_number(double value);

/// Columns that UTF-8 `text` takes on a terminal, each code point counted as one.
size_t display_width(std::string_view text);
/// `text` if it fits in `width` columns, else its start and end around an ellipsis. Never cuts a code point.
std::string shorten(std::string_view text, size_t width);

/// `text` with line breaks at spaces, so that no line has more than `width` columns where its words allow it.
std::string wrap(std::string_view text, size_t width);

/// Alphabetical order in which "layers.2" comes before "layers.10".
bool natural_less(std::string_view a, std::string_view b);

/// The last component of a path, also for "models/a/" and ".".
std::string base_name(const std::filesystem::path& path);

/// The whole file; throws flute::Error naming it. "-" reads standard input where `allow_stdin`.
std::string read_text(const std::filesystem::path& path, bool allow_stdin = false);

}  // namespace flute::cli
