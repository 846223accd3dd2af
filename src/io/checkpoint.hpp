#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flute/packed.hpp"
#include "io/json.hpp"
#include "io/quantization_config.hpp"
#include "io/safetensors.hpp"

namespace flute::io {

/// A Hugging Face checkpoint: its shards, their index, config.json.
class Checkpoint {
 public:
  /// Opens a folder (model.safetensors, or model.safetensors.index.json and its shards) or a single .safetensors file,
  /// and checks everything but the tensors' values: every shard of the index present and inside the folder (symbolic
  /// links are followed; `..` and absolute paths are refused), every indexed tensor in its shard, no name twice.
  static Checkpoint open(const std::filesystem::path& path);
  /// The same from parts, for tests and fuzzing; `path` is used in messages.
  static Checkpoint from_parts(const std::filesystem::path& path, nlohmann::ordered_json config,
                               std::vector<SafetensorsFile> shards);
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& path() const;
  /// The folder that holds config.json and tokenizer files.
  std::filesystem::path folder() const;
  const nlohmann::ordered_json& config() const;  ///< config.json; null where there is none
  const std::vector<SafetensorsFile>& shards() const;

  const TensorView* find(std::string_view name) const;  ///< null when absent
  /// Throws kInvalidFormat naming folder and tensor when absent.
  const TensorView& at(std::string_view name) const;
  const std::filesystem::path& file_of(std::string_view name) const;

  /// Is `quantization_config.quant_method` "flute"?
  bool is_quantized() const { return quantization() != nullptr; }
  const QuantizationConfig* quantization() const;  ///< null unless is_quantized()
  /// Names P of the quantized layers (those with `P.weight_packed`), in file order; empty unless is_quantized().
  const std::vector<std::string>& quantized_layers() const;
  /// P where tensor `name` is P.weight_packed, _scale, _codebook or _offset of a quantized layer; empty otherwise.
  std::string_view layer_of(std::string_view name) const;
  /// The packed matrix of layer `prefix`, its shapes and dtypes checked against config.json's bits and group size, and
  /// with `check_values` (which reads them all) its scales and codebook for infinities and NaN. Points into the mapped
  /// file.
  PackedView packed_layer(std::string_view prefix, bool check_values = true) const;

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// A codebook file: {"bits": b, "values": [2^b numbers]}, b from 1 to 8.
Codebook read_codebook_file(const std::filesystem::path& path);
Codebook parse_codebook(std::string_view text, const std::string& what);

}  // namespace flute::io
