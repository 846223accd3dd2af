#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "flute/packed.hpp"

namespace flute::cli {

/// What `flute inspect --layer` shows of one quantized layer.
struct LayerDetail {
  std::string name;
  int64_t n = 0, k = 0, group_size = 0;
  int bits = 0;
  bool per_row_codebook = false;
  bool has_offsets = false;
  size_t bytes = 0;
  std::string scale_dtype;
  double smallest_scale = 0, median_scale = 0, largest_scale = 0;
  std::vector<float> codebook;       ///< the table; the first row's where every row has one
  std::vector<int64_t> code_counts;  ///< [2^bits]
};

/// Reads every code and scale of the layer.
LayerDetail layer_detail(const std::string& name, const PackedView& layer);

/// For a terminal: the fields, then one line for each code with its value and a bar of how often it occurs.
std::string render_detail(const LayerDetail& detail);

}  // namespace flute::cli
