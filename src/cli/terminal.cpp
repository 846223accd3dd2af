#include "cli/terminal.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/fail.hpp"
#include "cli/interrupt.hpp"

namespace flute::cli {
namespace {
[[noreturn]] void fail_output() {
  const int error = errno;
  if (error == EPIPE) throw Interrupted{SIGPIPE, {}};
  fail(ErrorCode::kIo, "standard output: cannot write: {}", std::strerror(error));
}
}  // namespace

void write_out(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) fail_output();
}

void flush_out() {
  if (std::fflush(stdout) != 0) fail_output();
}

void print_json(const nlohmann::ordered_json& json, JsonStyle style) {
  const int indent = style == JsonStyle::kIndented ? 2 : -1;
  write_out(json.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + '\n');
}

void write_note(std::string_view line) {
  std::fflush(stdout);  // keep the order that a terminal shows; a failure shows at the next write_out
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fputc('\n', stderr);
}

bool is_terminal(std::FILE* stream) { return isatty(fileno(stream)) == 1; }

bool wants_colour(std::FILE* stream) {
  const char* no_colour = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  const bool refused = no_colour != nullptr && *no_colour != '\0';
  return is_terminal(stream) && !refused && (term == nullptr || std::strcmp(term, "dumb") != 0);
}

int terminal_width(std::FILE* stream) {
  winsize size = {};
  if (ioctl(fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 100;
}

}  // namespace flute::cli
