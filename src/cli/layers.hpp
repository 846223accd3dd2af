#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/table.hpp"
#include "io/pipelines.hpp"

namespace flute::cli {

/// One row for each tensor of a checkpoint in the order of their names, the totals below; a column for the relative
/// error where there is one.
Table layer_table(const io::CheckpointReport& report);

/// The same for scripts. "layers" are the quantized layers (of a plain checkpoint: all its matrices), "tensors" the
/// others. "bits_per_weight" is that of "layers", "total_bits_per_weight" that of everything.
nlohmann::ordered_json report_json(const io::CheckpointReport& report);

/// "64", "row", or empty for a layer that is not quantized.
std::string group_text(const io::LayerReport& layer);

/// Number of quantized layers.
int64_t quantized_count(const io::CheckpointReport& report);

/// bits_per_weight of report_json.
double layer_bits_per_weight(const io::CheckpointReport& report);

}  // namespace flute::cli
