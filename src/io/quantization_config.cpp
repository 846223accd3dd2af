#include "io/quantization_config.hpp"

#include "base/fail.hpp"
#include "io/files.hpp"

namespace flute::io {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kFormatVersion = 1;

/// Reads the keys of Layer that `values` has over `result`.
void read_layer(const Json& values, QuantizationConfig::Layer& result, const std::string& what) {
  if (const auto bits = values.find("bits"); bits != values.end()) {
    if (!bits->is_number_integer() || *bits < 1 || *bits > 8) {
      fail(ErrorCode::kInvalidFormat, "{}: bits: expected 1 to 8, found {}", what, describe(*bits));
    }
    result.bits = bits->get<int>();
  }
  if (const auto group = values.find("group_size"); group != values.end()) {
    if (!group->is_number_integer() ||
        (*group != 32 && *group != 64 && *group != 128 && *group != 256 && *group != -1)) {
      fail(ErrorCode::kInvalidFormat, "{}: group_size: expected 32, 64, 128, 256 or -1, found {}", what,
           describe(*group));
    }
    result.group_size = group->get<int64_t>();
  }
  if (const auto codebook = values.find("codebook"); codebook != values.end()) {
    if (!codebook->is_string()) {
      fail(ErrorCode::kInvalidFormat, "{}: codebook: expected a name, found {}", what, describe(*codebook));
    }
    result.codebook = codebook->get<std::string>();
  }
}

void read_string(const Json& values, const char* key, std::string& result, const std::string& what) {
  const auto value = values.find(key);
  if (value == values.end()) return;
  if (!value->is_string()) {
    fail(ErrorCode::kInvalidFormat, "{}: {}: expected a string, found {}", what, key, describe(*value));
  }
  result = value->get<std::string>();
}

}  // namespace

const QuantizationConfig::Layer& QuantizationConfig::layer(std::string_view prefix) const {
  const auto found = layers.find(prefix);
  return found == layers.end() ? common : found->second;
}

Json QuantizationConfig::to_json() const {
  Json result = {{"quant_method", "flute"},
                 {"format_version", kFormatVersion},
                 {"bits", common.bits},
                 {"group_size", common.group_size},
                 {"codebook", common.codebook},
                 {"scale_dtype", scale_dtype},
                 {"method", method},
                 {"modules_to_not_convert", modules_to_not_convert}};
  if (layers.empty()) return result;
  Json& overrides = result["layers"] = Json::object();
  for (const auto& [prefix, layer] : layers) {
    Json& entry = overrides[prefix] = Json::object();
    if (layer.bits != common.bits) entry["bits"] = layer.bits;
    if (layer.group_size != common.group_size) entry["group_size"] = layer.group_size;
    if (layer.codebook != common.codebook) entry["codebook"] = layer.codebook;
  }
  return result;
}

bool has_flute_quantization(const Json& config) {
  if (!config.is_object()) return false;
  const auto values = config.find("quantization_config");
  if (values == config.end() || !values->is_object()) return false;
  const auto method = values->find("quant_method");
  return method != values->end() && *method == "flute";
}

QuantizationConfig parse_quantization_config(const Json& config, const std::string& file) {
  const Json& values = config.at("quantization_config");
  const std::string what = file + ": quantization_config";
  for (const char* key : {"format_version", "bits", "group_size"}) {
    if (!values.contains(key)) fail(ErrorCode::kInvalidFormat, "{}: expected key '{}', found none", what, key);
  }
  const Json& version = values["format_version"];
  if (!version.is_number_integer() || version < 1) {
    fail(ErrorCode::kInvalidFormat, "{}: format_version: expected {}, found {}", what, kFormatVersion,
         describe(version));
  }
  if (version > kFormatVersion) {
    fail(ErrorCode::kUnsupported, "{}: format_version: expected {}, found {}: a newer flute is needed", what,
         kFormatVersion, describe(version));
  }
  QuantizationConfig result;
  read_layer(values, result.common, what);
  read_string(values, "scale_dtype", result.scale_dtype, what);
  read_string(values, "method", result.method, what);
  if (const auto names = values.find("modules_to_not_convert"); names != values.end() && !names->is_null()) {
    if (!names->is_array()) {
      fail(ErrorCode::kInvalidFormat, "{}: modules_to_not_convert: expected a list of names, found {}", what,
           describe(*names));
    }
    for (const Json& name : *names) {
      if (!name.is_string()) {
        fail(ErrorCode::kInvalidFormat, "{}: modules_to_not_convert: expected a name, found {}", what, describe(name));
      }
      result.modules_to_not_convert.push_back(name.get<std::string>());
    }
  }
  if (const auto layers = values.find("layers"); layers != values.end() && !layers->is_null()) {
    if (!layers->is_object()) {
      fail(ErrorCode::kInvalidFormat, "{}: layers: expected an object, found {}", what, describe(*layers));
    }
    for (const auto& item : layers->items()) {
      const std::string where = fmt::format("{}: layers: '{}'", what, printable(item.key()));
      if (!item.value().is_object()) {
        fail(ErrorCode::kInvalidFormat, "{}: expected an object, found {}", where, describe(item.value()));
      }
      QuantizationConfig::Layer layer = result.common;
      read_layer(item.value(), layer, where);
      result.layers.emplace(item.key(), std::move(layer));
    }
  }
  return result;
}

}  // namespace flute::io
