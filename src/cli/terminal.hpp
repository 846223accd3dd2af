#pragma once
#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json_fwd.hpp>
#include <string_view>
#include <utility>

namespace flute::cli {

/// Writes to standard output. A reader that went away (`| head -1`) throws Interrupted, any other failure flute::Error.
void write_out(std::string_view text);
/// Makes sure that everything written has arrived; throws as write_out does.
void flush_out();
/// Writes a line to standard error.
void write_note(std::string_view line);

/// Results: formatted text on standard output.
template <typename... Args>
void print(fmt::format_string<Args...> format, Args&&... args) {
  write_out(fmt::format(format, std::forward<Args>(args)...));
}

/// The answer for a script: an indented document, or one line. Text that is no UTF-8 is mended, not refused.
enum class JsonStyle { kIndented, kOneLine };
void print_json(const nlohmann::ordered_json& json, JsonStyle style = JsonStyle::kIndented);

/// What a person wants to know but a script does not want to read: a line on standard error.
template <typename... Args>
void note(fmt::format_string<Args...> format, Args&&... args) {
  write_note(fmt::format(format, std::forward<Args>(args)...));
}

/// Is the stream a terminal?
bool is_terminal(std::FILE* stream);
/// May the stream carry colours: a terminal, NO_COLOR unset or empty, TERM not "dumb"?
bool wants_colour(std::FILE* stream);
/// Columns of the terminal on `stream`; 100 where it is none.
int terminal_width(std::FILE* stream);

}  // namespace flute::cli
