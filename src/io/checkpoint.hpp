#pragma once
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flute/packed.hpp"
#include "io/safetensors.hpp"

namespace flute::io {

/// A Hugging Face checkpoint folder (or a single .safetensors file): shards, index, config.json.
class Checkpoint {
 public:
  /// Opens and checks everything but tensor values: every shard of the index present and inside the folder (symbolic
  /// links are followed, `..` and absolute paths refused), every indexed tensor in the shard it is said to be in.
  static Checkpoint open(const std::filesystem::path& path);
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& path() const;
  const nlohmann::ordered_json& config() const;  ///< config.json; null where there is none
  const std::vector<SafetensorsFile>& shards() const;

  struct Entry {
    const TensorView* tensor;
    const SafetensorsFile* file;
  };
  const TensorView* find(std::string_view name) const;  ///< null when absent
  /// Throws kInvalidFormat naming folder and tensor when absent.
  const TensorView& at(std::string_view name) const;
  const std::filesystem::path& file_of(std::string_view name) const;

  /// Is `quantization_config.quant_method` "flute"?
  bool is_quantized() const;
  /// Names P of the quantized layers (those with `P.weight_packed`), in file order.
  const std::vector<std::string>& quantized_layers() const;
  /// The packed matrix of layer `prefix`, its shapes and dtypes checked against config.json's bits and group size.
  /// Points into the mapped file.
  PackedView packed_layer(std::string_view prefix) const;

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Reads a JSON file of at most `max_bytes`, depth-limited; throws naming the file (and the byte on a syntax error).
nlohmann::ordered_json read_json_file(const std::filesystem::path& path, size_t max_bytes = size_t{256} << 20);
nlohmann::ordered_json parse_json(std::string_view text, const std::string& what);

/// A codebook file: {"bits": b, "values": [2^b numbers]}.
Codebook read_codebook_file(const std::filesystem::path& path);
Codebook parse_codebook(std::string_view text, const std::string& what);

}  // namespace flute::io
