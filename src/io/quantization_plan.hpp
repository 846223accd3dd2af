#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/pipelines.hpp"

namespace flute::io {

/// Where the tables of a run come from.
class CodebookSource {
 public:
  /// `name`: nf, int, fp or a variant, kmeans, or a path to a codebook file (read here).
  explicit CodebookSource(const std::string& name);
  /// As config.json names it: "nf", "kmeans", "file:table.json", ...
  const std::string& label() const { return label_; }
  /// Throws where there is no such table of `bits`.
  void check(int bits, const std::string& what) const;
  bool is_fitted() const { return name_ == "kmeans"; }
  bool is_int() const { return name_ == "int"; }
  /// The table; not for a fitted one.
  Codebook make(int bits, const std::string& what) const;

 private:
  std::string name_, label_;
  std::optional<Codebook> file_;
};

/// One tensor of the source and what becomes of it.
struct PlannedTensor {
  const TensorView* source = nullptr;
  std::string prefix;  ///< of the quantized layer; empty: the tensor is copied
  QuantizationConfig::Layer layer;
  bool is_quantized() const { return !prefix.empty(); }
};

struct PlannedShard {
  const SafetensorsFile* source = nullptr;
  std::vector<PlannedTensor> tensors;
};

/// What quantize_checkpoint is going to do: a pure function of the source's header and the options.
struct QuantizationPlan {
  std::vector<PlannedShard> shards;
  QuantizationConfig config;
  bool splits_tied_head = false;  ///< the head gets a matrix of its own, so config.json must no longer tie it
};

/// Throws where an option does not fit or matches nothing, where a chosen layer cannot be quantized, and where the
/// source is quantized already.
QuantizationPlan make_plan(const Checkpoint& source, const QuantizeOptions& options, const CodebookSource& codebooks);

/// Tensors that are written for `tensor`: itself, or the layer's packed codes, scales and codebook.
std::vector<TensorPlan> written_tensors(const PlannedTensor& tensor, DType scale_dtype);

/// The target's config.json.
nlohmann::ordered_json quantized_config(const Checkpoint& source, const QuantizationPlan& plan);

/// What a checkpoint made by this plan holds.
CheckpointReport planned_report(const QuantizationPlan& plan, DType scale_dtype);

}  // namespace flute::io
