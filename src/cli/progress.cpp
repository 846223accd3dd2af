#include "cli/progress.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "cli/interrupt.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"

namespace flute::cli {
namespace {

constexpr auto kQuiet = std::chrono::seconds(1);          // before the first sign of life
constexpr auto kRedraw = std::chrono::milliseconds(100);  // on a terminal
constexpr auto kLogEvery = std::chrono::seconds(10);      // elsewhere
constexpr int kBarWidth = 24;

std::string amount(double value, Unit unit) {
  if (unit == Unit::kBytes) return human_bytes(value);
  return human_count(static_cast<int64_t>(value)) + " tokens";
}

double fraction(const ProgressState& state) {
  if (state.total <= 0) return 0;
  return std::clamp(static_cast<double>(state.done) / static_cast<double>(state.total), 0.0, 1.0);
}

}  // namespace

std::string progress_figures(const ProgressState& state, Unit unit) {
  const auto done = static_cast<double>(state.done);
  const auto total = static_cast<double>(state.total);
  const double rate = state.seconds > 0 ? static_cast<double>(state.done - state.at_start) / state.seconds : 0;
  const std::string left =
      rate > 0 ? fmt::format("{} left", human_seconds(std::max(0.0, total - done) / rate)) : std::string();
  if (unit == Unit::kShares) return left;
  const std::string figures =
      fmt::format("{} of {}", unit == Unit::kBytes ? human_bytes(done) : human_count(state.done), amount(total, unit));
  return rate > 0 ? fmt::format("{}  {}/s  {}", figures, amount(rate, unit), left) : figures;
}

std::string progress_bar_line(std::string_view title, const ProgressState& state, Unit unit, std::string_view what,
                              int width) {
  const double part = fraction(state);
  const int filled = static_cast<int>(part * kBarWidth);
  std::string bar;
  for (int i = 0; i < kBarWidth; ++i) bar += i < filled ? "█" : "░";
  std::string line = fmt::format("{} {} {:3.0f} %", title, bar, part * 100);
  if (const std::string figures = progress_figures(state, unit); !figures.empty()) line += "  " + figures;
  const auto columns = static_cast<size_t>(std::max(width, 1));
  const size_t used = display_width(line);
  constexpr size_t kShortestName = 12;
  if (!what.empty() && used + 2 + kShortestName <= columns) line += "  " + shorten(what, columns - used - 2);
  return shorten(line, columns);
}

std::string progress_log_line(std::string_view title, const ProgressState& state, Unit unit) {
  const std::string figures = progress_figures(state, unit);
  return fmt::format("{}: {:.0f} %{}{}", title, fraction(state) * 100, figures.empty() ? "" : ", ", figures);
}

ProgressBar::ProgressBar(std::string title, Unit unit)
    : title_(std::move(title)),
      unit_(unit),
      terminal_(is_terminal(stderr)),
      start_(Clock::now()),
      next_(start_ + kQuiet) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
}

double ProgressBar::seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

void ProgressBar::update(int64_t done, int64_t total, std::string_view what) {
  check_interrupt();
  if (unit_ == Unit::kShares && !first_) first_ = ProgressState{done, total, seconds()};
  const auto now = Clock::now();
  if (now < next_) return;
  ProgressState state{done, total, seconds()};
  if (first_) {
    state.seconds -= first_->seconds;
    state.at_start = first_->done;
  }
  if (terminal_) {
    const int width = terminal_width(stderr) - 1;  // a full last column would wrap
    fmt::print(stderr, "\r{}\x1b[K", progress_bar_line(title_, state, unit_, what, width));
    std::fflush(stderr);
    drawn_ = true;
    next_ = now + kRedraw;
  } else if (done < total) {  // the result will say that it is done
    note("{}", progress_log_line(title_, state, unit_));
    next_ = now + kLogEvery;
  }
}

}  // namespace flute::cli
