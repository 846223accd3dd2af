#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace flute::cli {

/// What a bar counts.
enum class Unit { kBytes, kTokens, kShares /* of work, some perhaps of an earlier run */ };

struct ProgressState {
  int64_t done = 0, total = 0;
  double seconds = 0;    ///< since the start
  int64_t at_start = 0;  ///< what was done then
};

/// "1.35 GB of 3.90 GB  421 MB/s  6.1 s left"; of shares only the time left.
std::string progress_figures(const ProgressState& state, Unit unit);
/// One line of at most `width` columns for a terminal: title, bar, percentage, figures and, where it fits, `what`.
std::string progress_bar_line(std::string_view title, const ProgressState& state, Unit unit, std::string_view what,
                              int width);
/// The same for a log: "quantize: 35 %, 1.35 GB of 3.90 GB  421 MB/s  6.1 s left".
std::string progress_log_line(std::string_view title, const ProgressState& state, Unit unit);

/// Shows on standard error how far a command is, once it has run for a second: a bar on a terminal, else a line now and
/// then. Its destructor clears the bar.
class ProgressBar {
 public:
  explicit ProgressBar(std::string title, Unit unit = Unit::kBytes);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  /// Also the place where a command notices Ctrl-C: throws Interrupted. Call it from one thread at a time.
  void update(int64_t done, int64_t total, std::string_view what = {});
  /// update() for whoever reports progress; not to be called after the bar is gone.
  std::function<void(int64_t done, int64_t total, std::string_view what)> observer() {
    return [this](int64_t done, int64_t total, std::string_view what) { update(done, total, what); };
  }
  double seconds() const;  ///< since construction

 private:
  using Clock = std::chrono::steady_clock;
  std::string title_;
  Unit unit_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point start_, next_;
  std::optional<ProgressState> first_;  // of shares: when work began, and with what done
};

}  // namespace flute::cli
