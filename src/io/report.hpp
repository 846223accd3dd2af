#pragma once
#include "io/pipelines.hpp"
#include "io/safetensors.hpp"

namespace flute::io {

/// The report's entry of a tensor that is not part of a quantized layer.
LayerReport plain_layer(const TensorView& tensor);

/// Fills in what follows from the layers' shapes and bytes.
void summarize(CheckpointReport& report);

}  // namespace flute::io
