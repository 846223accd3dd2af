#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "flute/packed.hpp"
#include "io/checkpoint.hpp"
#include "io/output_folder.hpp"
#include "io/pipelines.hpp"
#include "io/quantization_plan.hpp"

namespace flute::io {

/// A quantized checkpoint whose layers are made by somebody else, in any order: quantize_checkpoint's promises for the
/// target hold here, too.
class QuantizedOutput {
 public:
  /// Opens the target's shards and reserves their space. `source` outlives the output.
  QuantizedOutput(const Checkpoint& source, const std::filesystem::path& target, const QuantizeOptions& options);

  /// The layer's plan; null where it stays as it is.
  const PlannedTensor* find(std::string_view prefix) const;
  /// Names of the layers that are to be written, in file order.
  std::vector<std::string> layers() const;
  /// The table that `planned` begins with; one that is fitted is to `weight`, of the planned shape.
  Codebook make_codebook(const PlannedTensor& planned, const void* weight, DType dtype, ThreadPool* threads) const;
  float max_magnitude(const Codebook& codebook) const;
  /// Writes a layer of the plan, once.
  void write(const PlannedTensor& planned, const PackedMatrix& matrix);
  /// A tensor that is not quantized gets other values, `data` as long as its own.
  void replace(std::string_view name, std::vector<std::byte> data);
  /// Copies all other tensors and gives the target its name. Every layer must have been written.
  CheckpointReport finish(const std::function<void(std::string_view what)>& progress);

 private:
  struct Place {
    const PlannedTensor* planned;
    size_t shard, index;
  };
  const Checkpoint& source_;
  CodebookSource codebooks_;
  DType scale_dtype_;
  QuantizationPlan plan_;
  OutputFolder folder_;
  std::vector<SafetensorsWriter> writers_;
  std::map<std::string, Place, std::less<>> places_;
  std::map<std::string, std::vector<std::byte>, std::less<>> replaced_;
};

}  // namespace flute::io
