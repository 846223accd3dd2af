#pragma once
#include <cstddef>
#include <string>
#include <string_view>

#include "cli/comparison.hpp"

namespace flute::cli {

// The report's figures as inline SVG. Colours come from the page's style sheet (report.cpp), so that they follow the
// reader's light or dark theme: classes `ink`, `soft`, `grid`, `s0`..`s5` (series) and `h0`..`h11` (heat).
inline constexpr size_t kSeriesColours = 6;
inline constexpr size_t kHeatSteps = 12;

/// Where a weight's name puts it in a heat strip: "model.layers.3.mlp.down_proj" is layer 3, kind "down". Layer -1
/// where the name has no number; then the kind is the whole name.
struct LayerPlace {
  int64_t layer = -1;
  std::string kind;
};
LayerPlace layer_place(std::string_view name);

/// Perplexity against bits per weight, the unquantized level as a line. Empty when no quantized model is there.
std::string perplexity_figure(const Comparison& comparison);
/// One strip of layers x kinds for each quantized model, and their common legend. Empty without errors.
std::string error_figure(const Comparison& comparison);
/// One histogram for each quantized model. Empty without histograms.
std::string histogram_figure(const Comparison& comparison);

}  // namespace flute::cli
