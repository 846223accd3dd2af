#pragma once
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "io/pipelines.hpp"
#include "model/calibration_text.hpp"

namespace flute::model {

/// What layers that are multiplied as one are quantized to.
struct ChosenFormat {
  std::vector<std::string> names;  ///< q, k, v; o; gate, up; down of a block, or the head
  io::LayerFormat format;
  double divergence = 0;  ///< that they alone are expected to cause, in nats a token
};

/// Chooses for each group of layers that `options` quantizes one of the formats of `options.target`, so that all of
/// them together, with scales and tables, take at most target.bits a weight, and what the model says is expected to
/// change the least. What a group costs is measured: it alone is rounded (quantize_mse, 3 bits, groups of 128), and the
/// text is predicted (measure_divergence) with up to 2048 of the calibration tokens; for other formats it is taken to
/// grow with the squared error of the weights, which is measured on up to 64 rows of each layer. Deterministic for any
/// number of threads. `progress` gets shares of the work, which is 1 in all. Throws kInvalidArgument where no choice is
/// that small, on a text that calibration_ids refuses, and where activations are not finite.
std::vector<ChosenFormat> choose_formats(const Blocks& blocks, const io::QuantizeOptions& options,
                                         const CalibrationText& calibration,
                                         const std::function<void(double share)>& progress);

}  // namespace flute::model
