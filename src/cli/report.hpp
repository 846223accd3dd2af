#pragma once
#include <string>

#include "cli/comparison.hpp"

namespace flute::cli {

/// The comparison as one HTML page that needs nothing else: no script, no font, no file beside it.
std::string render_report(const Comparison& comparison);

}  // namespace flute::cli
