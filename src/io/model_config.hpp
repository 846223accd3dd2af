#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace flute::io {

enum class Architecture { kLlama, kGemma2 };

/// RoPE settings, from `rope_parameters` or from `rope_theta` + `rope_scaling`.
struct RopeConfig {
  double theta = 10000.0;
  std::string type = "default";  ///< "default", "linear" or "llama3"
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;
  int64_t original_max_position_embeddings = 8192;
};

/// What the runtime needs of config.json (+ generation_config.json). Every field is range-checked.
struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  int64_t hidden_size = 0, intermediate_size = 0, num_layers = 0;
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  int64_t vocab_size = 0, max_position_embeddings = 0;
  double rms_norm_eps = 1e-5;
  bool tie_word_embeddings = false;
  bool attention_bias = false, mlp_bias = false;
  RopeConfig rope;
  // Gemma-2
  double query_pre_attn_scalar = 0;   ///< 0: head_dim
  double attn_logit_softcapping = 0;  ///< 0: none
  double final_logit_softcapping = 0;
  int64_t sliding_window = 0;        ///< 0: none
  std::vector<bool> sliding_layers;  ///< per layer
  int32_t bos_token_id = -1;
  std::vector<int32_t> eos_token_ids;  ///< generation_config.json first, else config.json
};

/// Throws kUnsupported (another architecture or RoPE type) or kInvalidFormat naming `what`, the field, what was
/// expected and found.
ModelConfig parse_model_config(const nlohmann::ordered_json& config, const nlohmann::ordered_json& generation_config,
                               const std::string& what);
/// Reads folder/config.json and folder/generation_config.json.
ModelConfig read_model_config(const std::filesystem::path& folder);

}  // namespace flute::io
