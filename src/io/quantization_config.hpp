#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.hpp"

namespace flute::io {

/// What `quantization_config` of a quantized checkpoint's config.json says. Its keys, version 1:
///
/// | key                      | value                                                                               |
/// |--------------------------|-------------------------------------------------------------------------------------|
/// | `quant_method`           | "flute"                                                                             |
/// | `format_version`         | 1; a reader refuses a larger one                                                    |
/// | `bits`                   | 1..8                                                                                |
/// | `group_size`             | 32, 64, 128, 256, or -1 for one scale a row                                         |
/// | `codebook`               | where the tables come from: "nf", "int", "fp", "e3m2", ..., "kmeans", "file:<name>". |
/// |                          | For people: the tables themselves are tensors                                       |
/// | `scale_dtype`            | "fp16", "bf16" or "fp32"; the tensors' dtype is what counts                         |
/// | `method`                 | how codes and scales were found: "rtn", "mse", "awq", "gptq", "ldlq" or "nfl"       |
/// | `modules_to_not_convert` | names (without ".weight") of linear-like layers that stayed as they were            |
/// | `layers`                 | optional: {prefix: {`bits`, `group_size`, `codebook`}} for layers that differ, only |
/// |                          | the keys that differ                                                                |
///
/// Unknown keys are ignored. Required are the first four.
struct QuantizationConfig {
  struct Layer {
    int bits = 4;
    int64_t group_size = 64;
    std::string codebook;
  };
  Layer common;
  std::string scale_dtype = "fp16";
  std::string method = "rtn";
  std::vector<std::string> modules_to_not_convert;
  std::map<std::string, Layer, std::less<>> layers;  ///< complete, those that differ from `common`

  /// What holds for layer `prefix`.
  const Layer& layer(std::string_view prefix) const;
  nlohmann::ordered_json to_json() const;
};

/// Is this config.json one of a checkpoint in this format?
bool has_flute_quantization(const nlohmann::ordered_json& config);

/// Parses `config["quantization_config"]`; messages start with `what`. Throws kUnsupported for a newer format_version,
/// kInvalidFormat for everything else.
QuantizationConfig parse_quantization_config(const nlohmann::ordered_json& config, const std::string& what);

}  // namespace flute::io
