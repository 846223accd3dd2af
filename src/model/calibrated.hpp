#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "io/pipelines.hpp"
#include "model/calibration_text.hpp"
#include "model/target_bits.hpp"

namespace flute::model {

struct CalibratedReport {
  io::CheckpointReport checkpoint;
  int64_t tokens = 0;          ///< that the statistics are of
  int64_t resumed_blocks = 0;  ///< that an earlier run had finished
  int64_t blocks = 0;
  std::vector<ChosenFormat> chosen;  ///< with QuantizeOptions::target, in the model's order
};

/// Called as the work goes on, in equal shares of its time, about; `what` is in hand: a layer, or a pass over the text.
/// Throwing from it ends the run, as a kill would: finished blocks are kept. The first call comes before any block,
/// with what an earlier run had done.
using CalibrationProgress = std::function<void(int64_t done, int64_t total, std::string_view what)>;

/// Where a run with this target keeps its finished blocks until the target is there: `<target>.flute-unfinished`.
std::filesystem::path unfinished_folder(const std::filesystem::path& target);

/// Quantizes a Llama-3 or Gemma-2 checkpoint with method awq, gptq or ldlq (`options.method`), block after block. A
/// layer's statistics are of the inputs that it will have: from quantized blocks before it, and quantized layers before
/// it in its block; with awq of the attention or MLP that it is in, not yet quantized. awq also changes the norms that
/// its scales are folded into, which keep name, dtype and shape. Memory: one block, its calibration tokens'
/// activations, two [K, K] matrices and what the method needs for one layer. The target is written as
/// quantize_checkpoint does. However a run ends, a later one with the same source, target, options and text goes on
/// behind the last finished block, to the same bytes; one that differs is refused (kInvalidArgument) while the
/// unfinished folder is there, or with `options.overwrite` begins anew. With
/// `options.target` formats are chosen first (choose_formats), when it goes on, too. Throws kInvalidArgument on a text
/// that is not UTF-8 or shorter than a window, where activations are not finite, where a layer is to be quantized that
/// is neither one of the blocks' linear layers nor the head, and with awq where one is left out that would have to take
/// part in another's scales.
CalibratedReport quantize_calibrated(const std::filesystem::path& source, const std::filesystem::path& target,
                                     const io::QuantizeOptions& options, const CalibrationText& calibration,
                                     ThreadPool* threads, const CalibrationProgress& progress = {});

}  // namespace flute::model
