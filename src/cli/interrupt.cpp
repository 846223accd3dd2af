#include "cli/interrupt.hpp"

#include <csignal>

namespace flute::cli {
namespace {
volatile std::sig_atomic_t noted_signal = 0;
void note_signal(int signal) { noted_signal = signal; }
}  // namespace

void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = note_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

void check_interrupt() {
  if (noted_signal != 0) throw Interrupted{noted_signal, {}};
}

}  // namespace flute::cli
