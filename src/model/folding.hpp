#pragma once
#include <array>
#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model/blocks.hpp"

namespace flute::model {

/// Layers that have their inputs in common, and where those come from: of a norm, or each of one row of another layer.
struct LayerGroup {
  std::vector<std::string> names;
  int64_t k = 0;              ///< inputs
  std::string norm;           ///< its name; empty where a layer makes the inputs
  std::string source;         ///< that layer; empty where a norm does
  std::vector<int64_t> rows;  ///< input j is linear in row rows[j] of the source; where a norm makes it: j
  bool source_has_bias = false;
};

/// Those of a block: q, k, v; o; gate, up; down.
std::array<LayerGroup, 4> layer_groups(const io::ModelConfig& config, int64_t layer);
LayerGroup head_group(const io::ModelConfig& config);

/// Scales on their way into a model's weights: a group's inputs are divided by them where they are made, and its
/// layers' columns multiplied. The outputs stay what they were.
class Folding {
 public:
  explicit Folding(const Blocks& blocks) : blocks_(blocks) {}

  /// Inputs of one row of a source have one scale. A norm keeps its dtype: rounded, its weights say what the scales are
  /// exactly, and where one cannot be divided (it is 0, or would be) the scale is 1.
  void fold(const LayerGroup& group, std::vector<float> scales);
  /// What the layer's columns are multiplied by; nothing folded: 1.
  std::vector<float> columns(std::string_view layer, int64_t k) const;
  /// `tensor`, which is the layer's weight [n, k], with all that has been folded.
  std::vector<float> weight(std::string_view layer, const io::TensorView& tensor) const;
  /// The norms that have changed.
  const ReplacedTensors& tensors() const { return tensors_; }

 private:
  void fold_into_norm(const std::string& norm, std::vector<float>& scales);

  const Blocks& blocks_;
  std::map<std::string, std::vector<float>, std::less<>> columns_, rows_;  // by layer: multiply, divide
  ReplacedTensors tensors_;
};

}  // namespace flute::model
