#pragma once
#include <string>

namespace flute::cli {

/// Thrown by check_interrupt() and print() after a signal asked the program to stop.
struct Interrupted {
  int signal;        ///< SIGINT, SIGTERM or SIGPIPE
  std::string kept;  ///< what stays of the command's work and how to go on; empty: nothing
};

/// From now on SIGINT and SIGTERM are only noted; a second one ends the program at once. A broken pipe raises no
/// signal.
void catch_interrupts();

/// Throws Interrupted when a signal has come. Commands call it from their progress callbacks.
void check_interrupt();

}  // namespace flute::cli
