#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/blocks.hpp"

namespace flute::model {

/// The text whose activations a quantizer sees.
struct CalibrationText {
  std::string_view text;      ///< UTF-8; a line of one NUL character ends a document
  std::string name = "text";  ///< what a message calls it
  int64_t tokens = 65536;     ///< taken in windows of 512 that lie evenly over the text, fewer where it has fewer
};

/// Tokens of a window, but no more than the model can take.
int64_t calibration_window(const io::ModelConfig& config);

/// Windows of calibration_window() tokens, as many as there are up to `calibration.tokens`, evenly over the text.
/// Throws kInvalidArgument where that is not one window, and on a text that is not UTF-8.
std::vector<int32_t> calibration_ids(const Blocks& blocks, const CalibrationText& calibration);

}  // namespace flute::model
