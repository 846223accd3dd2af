#include "io/model_config.hpp"

#include <cmath>
#include <limits>
#include <string_view>

#include "base/fail.hpp"
#include "io/files.hpp"
#include "io/json.hpp"

namespace flute::io {
namespace {

using Json = nlohmann::ordered_json;

// Generous bounds: far beyond any model, small enough that no product of two of them overflows.
constexpr int64_t kMaxWidth = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 10'000;
constexpr int64_t kMaxHeads = int64_t{1} << 16;
constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max();

/// The members of a JSON object, read with checks. null counts as absent, except for nullable_number.
class Fields {
 public:
  Fields(const Json& object, std::string what) : object_(object), what_(std::move(what)) {
    if (!object.is_object()) bad("", "an object", object);
  }

  const Json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  bool has(const char* key) const { return object_.contains(key); }

  int64_t integer(const char* key, int64_t min, int64_t max) const { return integer(key, min, max, missing(key)); }
  int64_t integer(const char* key, int64_t min, int64_t max, int64_t absent) const {
    const Json* value = find(key);
    return value == nullptr ? absent : as_integer(key, *value, min, max);
  }
  int64_t as_integer(const char* key, const Json& value, int64_t min, int64_t max) const {
    if (!value.is_number_integer() || value < min || value > max) {
      bad(key, fmt::format("an integer from {} to {}", min, max), value);
    }
    return value.get<int64_t>();
  }

  /// A finite number greater than 0.
  double positive(const char* key) const { return positive(key, static_cast<double>(missing(key))); }
  double positive(const char* key, double absent) const {
    const Json* value = find(key);
    if (value == nullptr) return absent;
    if (!value->is_number() || !std::isfinite(value->get<double>()) || value->get<double>() <= 0) {
      bad(key, "a number greater than 0", *value);
    }
    return value->get<double>();
  }

  bool boolean(const char* key, bool absent) const {
    const Json* value = find(key);
    if (value == nullptr) return absent;
    if (!value->is_boolean()) bad(key, "true or false", *value);
    return value->get<bool>();
  }

  std::string string(const char* key, std::string_view absent) const {
    const Json* value = find(key);
    if (value == nullptr) return std::string(absent);
    if (!value->is_string()) bad(key, "a string", *value);
    return value->get<std::string>();
  }

  [[noreturn]] void bad(std::string_view key, std::string_view expected, const Json& found,
                        ErrorCode code = ErrorCode::kInvalidFormat) const {
    fail(code, "{}: {}{}expected {}, found {}", what_, key, key.empty() ? "" : ": ", expected, describe(found));
  }
  const std::string& what() const { return what_; }

 private:
  /// Throws where `key` is absent, else returns 0.
  int64_t missing(const char* key) const {
    if (find(key) == nullptr) fail(ErrorCode::kInvalidFormat, "{}: {}: expected a value, found none", what_, key);
    return 0;
  }

  const Json& object_;
  std::string what_;
};

Architecture parse_architecture(const Fields& fields) {
  std::string name = fields.string("model_type", "none");
  if (const Json* list = fields.find("architectures")) {
    if (!list->is_array() || list->empty() || !list->front().is_string()) {
      fields.bad("architectures", "a list of names", *list);
    }
    name = list->front().get<std::string>();
  }
  if (name == "LlamaForCausalLM" || name == "llama") return Architecture::kLlama;
  if (name == "Gemma2ForCausalLM" || name == "gemma2") return Architecture::kGemma2;
  fail(ErrorCode::kUnsupported, "{}: architectures: expected LlamaForCausalLM or Gemma2ForCausalLM, found {}",
       fields.what(), printable(name));
}

/// `values` is `rope_parameters` or `rope_scaling`.
void parse_rope_values(const Fields& values, RopeConfig& rope) {
  for (const char* key : {"full_attention", "sliding_attention"}) {
    if (const Json* nested = values.find(key)) {
      values.bad(key, "one set of RoPE parameters for all layers", *nested, ErrorCode::kUnsupported);
    }
  }
  rope.type = values.string("rope_type", values.string("type", "default"));
  rope.theta = values.positive("rope_theta", rope.theta);
  if (values.positive("partial_rotary_factor", 1.0) != 1.0) {
    values.bad("partial_rotary_factor", "1", *values.find("partial_rotary_factor"), ErrorCode::kUnsupported);
  }
  if (rope.type == "default") return;
  if (rope.type != "linear" && rope.type != "llama3") {
    values.bad("rope_type", "default, linear or llama3", rope.type, ErrorCode::kUnsupported);
  }
  rope.factor = values.positive("factor");
  if (rope.type == "linear") return;
  rope.low_freq_factor = values.positive("low_freq_factor");
  rope.high_freq_factor = values.positive("high_freq_factor");
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    values.bad("high_freq_factor", fmt::format("more than low_freq_factor {}", rope.low_freq_factor),
               *values.find("high_freq_factor"));
  }
  rope.original_max_position_embeddings = values.integer("original_max_position_embeddings", 1, kMaxTokens);
}

RopeConfig parse_rope(const Fields& fields) {
  RopeConfig rope;
  rope.theta = fields.positive("rope_theta", rope.theta);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (const Json* values = fields.find(key)) {
      parse_rope_values(Fields(*values, fields.what() + ": " + key), rope);
      break;
    }
  }
  return rope;
}

/// A soft-cap: absent means the architecture's default, null none.
double parse_softcap(const Fields& fields, const char* key, double absent) {
  return fields.has(key) ? fields.positive(key, 0) : absent;
}

void parse_gemma2(const Fields& fields, ModelConfig& config) {
  config.query_pre_attn_scalar = fields.positive("query_pre_attn_scalar", 256);
  config.attn_logit_softcapping = parse_softcap(fields, "attn_logit_softcapping", 50);
  config.final_logit_softcapping = parse_softcap(fields, "final_logit_softcapping", 30);
  config.sliding_window = fields.has("sliding_window") ? fields.integer("sliding_window", 1, kMaxTokens, 0) : 4096;
  config.sliding_layers.resize(static_cast<size_t>(config.num_layers));
  const Json* types = fields.find("layer_types");
  if (types != nullptr && (!types->is_array() || types->size() != config.sliding_layers.size())) {
    fields.bad("layer_types", fmt::format("a list of {} names", config.num_layers), *types);
  }
  for (size_t i = 0; i < config.sliding_layers.size(); ++i) {
    if (types == nullptr) {
      config.sliding_layers[i] = i % 2 == 0;
    } else if ((*types)[i] == "sliding_attention") {
      config.sliding_layers[i] = true;
    } else if ((*types)[i] != "full_attention") {
      fields.bad("layer_types", "sliding_attention or full_attention", (*types)[i], ErrorCode::kUnsupported);
    }
    if (config.sliding_window == 0) config.sliding_layers[i] = false;
  }
  if (fields.boolean("use_bidirectional_attention", false)) {
    fields.bad("use_bidirectional_attention", "false", true, ErrorCode::kUnsupported);
  }
}

void check_activation(const Fields& fields, const char* key, std::string_view expected) {
  if (const std::string found = fields.string(key, expected); found != expected) {
    fields.bad(key, expected, found, ErrorCode::kUnsupported);
  }
}

std::vector<int32_t> parse_eos(const Fields& fields) {
  std::vector<int32_t> ids;
  const Json* value = fields.find("eos_token_id");
  if (value == nullptr) return ids;
  for (const Json& id : value->is_array() ? *value : Json::array({*value})) {
    ids.push_back(static_cast<int32_t>(fields.as_integer("eos_token_id", id, 0, kMaxTokens)));
  }
  return ids;
}

}  // namespace

ModelConfig parse_model_config(const Json& config_json, const Json& generation_json, const std::string& what) {
  const Fields fields(config_json, what);
  ModelConfig config;
  config.architecture = parse_architecture(fields);
  const bool gemma = config.architecture == Architecture::kGemma2;

  config.hidden_size = fields.integer("hidden_size", 1, kMaxWidth);
  config.intermediate_size = fields.integer("intermediate_size", 1, kMaxWidth);
  config.num_layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  config.num_heads = fields.integer("num_attention_heads", 1, kMaxHeads);
  config.num_kv_heads = fields.integer("num_key_value_heads", 1, config.num_heads, config.num_heads);
  if (config.num_heads % config.num_kv_heads != 0) {
    fields.bad("num_key_value_heads", fmt::format("a divisor of num_attention_heads {}", config.num_heads),
               config.num_kv_heads);
  }
  if (!fields.find("head_dim") && !gemma && config.hidden_size % config.num_heads != 0) {
    fields.bad("hidden_size", fmt::format("a multiple of num_attention_heads {}, or a head_dim", config.num_heads),
               config.hidden_size);
  }
  config.head_dim = fields.integer("head_dim", 1, kMaxWidth, gemma ? 256 : config.hidden_size / config.num_heads);
  if (config.head_dim % 2 != 0) fields.bad("head_dim", "an even number, as RoPE turns pairs", config.head_dim);
  config.vocab_size = fields.integer("vocab_size", 1, kMaxTokens);
  config.max_position_embeddings = fields.integer("max_position_embeddings", 1, kMaxTokens, gemma ? 8192 : 2048);
  config.rms_norm_eps = fields.positive("rms_norm_eps", 1e-6);
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", gemma);
  config.attention_bias = fields.boolean("attention_bias", false);
  config.mlp_bias = fields.boolean("mlp_bias", false);
  config.rope = parse_rope(fields);
  if (gemma) {
    check_activation(fields, "hidden_activation", "gelu_pytorch_tanh");
    parse_gemma2(fields, config);
  } else {
    check_activation(fields, "hidden_act", "silu");
    config.sliding_layers.assign(static_cast<size_t>(config.num_layers), false);
  }

  config.bos_token_id = static_cast<int32_t>(fields.integer("bos_token_id", 0, kMaxTokens, -1));
  if (!generation_json.is_null()) {
    config.eos_token_ids = parse_eos(
        Fields(generation_json, (std::filesystem::path(what).parent_path() / "generation_config.json").string()));
  }
  if (config.eos_token_ids.empty()) config.eos_token_ids = parse_eos(fields);
  return config;
}

ModelConfig read_model_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  const std::filesystem::path generation = folder / "generation_config.json";
  return parse_model_config(read_json_file(path), path_exists(generation) ? read_json_file(generation) : Json(),
                            path.string());
}

}  // namespace flute::io
