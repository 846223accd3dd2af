#include "io/quantization_plan.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <regex>

#include "base/fail.hpp"
#include "format/codebook_names.hpp"
#include "io/files.hpp"
#include "io/report.hpp"

namespace flute::io {
namespace {

constexpr std::string_view kWeightSuffix = ".weight";
constexpr std::string_view kEmbedding = "model.embed_tokens.weight";

bool contains_any(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::any_of(words.begin(), words.end(), [&](std::string_view word) { return text.find(word) != text.npos; });
}

/// Is this `layers.<i>.`, `h.<i>.` or `blocks.<i>.`, with anything before and after?
bool lies_in_block(std::string_view name) {
  for (const std::string_view list : {"layers.", "h.", "blocks."}) {
    for (size_t at = name.find(list); at != name.npos; at = name.find(list, at + 1)) {
      if (at > 0 && name[at - 1] != '.') continue;
      const size_t digits = at + list.size();
      const size_t end = name.find_first_not_of("0123456789", digits);
      if (end != name.npos && end > digits && name[end] == '.') return true;
    }
  }
  return false;
}

/// Tables that are looked up, not multiplied with.
bool is_embedding(std::string_view prefix) { return contains_any(prefix, {"embed", "wte", "wpe"}); }

/// The linear layers of the decoder blocks. A router of experts ("gate", "router") is small and sensitive: it stays.
bool is_default_choice(std::string_view prefix) {
  return lies_in_block(prefix) && !is_embedding(prefix) && !contains_any(prefix, {"norm", "ln_", "router"}) &&
         !prefix.ends_with(".gate");
}

class Pattern {
 public:
  Pattern(const std::string& text, std::string_view option) : text_(text), option_(option) {
    try {
      regex_ = std::regex(text, std::regex::ECMAScript);
    } catch (const std::regex_error& error) {
      fail(ErrorCode::kInvalidArgument, "{} '{}': expected a regular expression, found an error: {}", option,
           printable(text), error.what());
    }
  }

  bool matches(const std::string& name) {
    constexpr size_t kMaxName = 1000;  // std::regex recurses for each character of a long name
    if (name.size() > kMaxName) {
      fail(ErrorCode::kUnsupported, "{} '{}': expected tensor names of at most {} bytes, found '{}'", option_,
           printable(text_), kMaxName, printable(name));
    }
    const bool result = std::regex_search(name, regex_);
    used_ = used_ || result;
    return result;
  }

  /// A pattern that matches nothing is a slip of the pen that would otherwise show much later.
  void check_used() const {
    if (!used_) {
      fail(ErrorCode::kInvalidArgument, "{} '{}': expected the name of at least one matrix to match, found none",
           option_, printable(text_));
    }
  }

 private:
  std::string text_;
  std::string_view option_;
  std::regex regex_;
  bool used_ = false;
};

/// Does any match? Asks all, so that each learns that it is used.
bool any_matches(std::vector<Pattern>& patterns, const std::string& name) {
  bool result = false;
  for (Pattern& pattern : patterns) result = pattern.matches(name) || result;
  return result;
}

class Planner {
 public:
  Planner(const Checkpoint& source, const QuantizeOptions& options, const CodebookSource& codebooks)
      : source_(source), options_(options), codebooks_(codebooks) {
    for (const std::string& text : options.include) include_.emplace_back(text, "--include");
    for (const std::string& text : options.exclude) exclude_.emplace_back(text, "--exclude");
    for (const auto& [text, bits] : options.layer_bits) layer_bits_.emplace_back(text, "--layer-bits");
  }

  QuantizationPlan run() {
    check_options();
    check_source();
    QuantizationPlan plan;
    plan.config.common = {options_.bits, options_.group_size,
                          learns_table(options_.method) ? "learned" : codebooks_.label()};
    plan.config.scale_dtype = dtype_name(options_.scale_dtype);
    plan.config.method = options_.method;
    for (const SafetensorsFile& file : source_.shards()) {
      PlannedShard shard{&file, {}};
      for (const TensorView& tensor : file.tensors()) {
        shard.tensors.push_back({&tensor, "", {}});
        add_matrix(tensor, std::string(tensor.name), plan, shard);
        if (tensor.name == kEmbedding && has_tied_head()) add_matrix(tensor, "lm_head.weight", plan, shard);
      }
      plan.shards.push_back(std::move(shard));
    }
    for (const auto* patterns : {&include_, &exclude_, &layer_bits_}) {
      for (const Pattern& pattern : *patterns) pattern.check_used();
    }
    return plan;
  }

 private:
  void check_options() const {
    constexpr std::array<std::string_view, 5> kMethods = {"rtn", "mse", "awq", "gptq", "ldlq"};
    if (std::find(kMethods.begin(), kMethods.end(), options_.method) == kMethods.end()) {
      fail(ErrorCode::kInvalidArgument, "method: expected rtn, mse, awq, gptq or ldlq, found '{}'",
           printable(options_.method));
    }
    if (searches_scales(options_.method) && options_.clip != 1) {
      fail(ErrorCode::kInvalidArgument, "clip: expected 1, since {} searches for the scales, found {}", options_.method,
           options_.clip);
    }
    if (!(options_.clip > 0 && options_.clip <= 1)) {
      fail(ErrorCode::kInvalidArgument, "clip: expected a factor above 0 and at most 1, found {}", options_.clip);
    }
    constexpr std::array<int64_t, 5> kGroupSizes = {32, 64, 128, 256, -1};
    if (std::find(kGroupSizes.begin(), kGroupSizes.end(), options_.group_size) == kGroupSizes.end()) {
      fail(ErrorCode::kInvalidArgument, "group size: expected 32, 64, 128, 256 or -1, found {}", options_.group_size);
    }
    if (options_.target) {
      if (!options_.layer_bits.empty()) {
        fail(ErrorCode::kInvalidArgument,
             "target bits: expected no bits for single layers with it, found some for '{}'",
             printable(options_.layer_bits.front().first));
      }
      for (const int bits : options_.target->widths) codebooks_.check(bits, "--target-bits");
      return;
    }
    codebooks_.check(options_.bits, "--bits");
    for (const auto& [text, bits] : options_.layer_bits)
      codebooks_.check(bits, "--layer-bits '" + printable(text) + "'");
  }

  void check_source() const {
    if (source_.is_quantized()) {
      fail(ErrorCode::kInvalidArgument, "{}: expected a checkpoint that is not quantized, found one in flute's format",
           source_.path().string());
    }
    const auto& config = source_.config();
    if (!config.is_object() || !config.contains("quantization_config")) return;
    const auto& found = config["quantization_config"];
    fail(ErrorCode::kUnsupported, "{}: expected a checkpoint that is not quantized, found quantization_config {}",
         source_.path().string(),
         describe(found.is_object() && found.contains("quant_method") ? found["quant_method"] : found));
  }

  bool has_tied_head() const {
    const auto& config = source_.config();
    const bool unties =
        config.is_object() && config.contains("tie_word_embeddings") && config["tie_word_embeddings"] == false;
    return !unties && source_.find("lm_head.weight") == nullptr;
  }

  /// `name` is the tensor's, or that of the head tied to it.
  void add_matrix(const TensorView& tensor, const std::string& name, QuantizationPlan& plan, PlannedShard& shard) {
    if (tensor.shape.size() != 2 || !name.ends_with(kWeightSuffix)) return;
    const std::string prefix = name.substr(0, name.size() - kWeightSuffix.size());
    const bool included = any_matches(include_, prefix);
    const bool excluded = any_matches(exclude_, prefix);
    if (excluded || !(included || is_default_choice(prefix))) {
      if (!is_embedding(prefix)) plan.config.modules_to_not_convert.push_back(prefix);
      return;
    }
    check_matrix(tensor, name, included);
    QuantizationConfig::Layer layer = plan.config.common;
    for (size_t i = layer_bits_.size(); i-- > 0;) {  // backwards: the first match wins
      if (layer_bits_[i].matches(prefix)) layer.bits = options_.layer_bits[i].second;
    }
    if (const auto format = options_.formats.find(prefix); format != options_.formats.end()) {
      layer.bits = format->second.bits;
      layer.group_size = format->second.group_size;
    }
    if (layer.bits != plan.config.common.bits || layer.group_size != plan.config.common.group_size)
      plan.config.layers.emplace(prefix, layer);
    if (name == tensor.name) {
      shard.tensors.back() = {&tensor, prefix, layer};
    } else {
      shard.tensors.push_back({&tensor, prefix, layer});
      plan.splits_tied_head = true;
    }
  }

  void check_matrix(const TensorView& tensor, const std::string& name, bool included) const {
    const std::filesystem::path& file = source_.file_of(tensor.name);
    float_dtype(tensor, file);
    const int64_t k = tensor.shape[1];
    if (tensor.shape[0] < 1 || k < 32 || k % 32 != 0) {
      fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': expected [N, K] with K a multiple of 32, found [{}]{}",
           file.string(), printable(name), fmt::join(tensor.shape, ", "),
           included ? "" : ": leave it out with --exclude");
    }
  }

  const Checkpoint& source_;
  const QuantizeOptions& options_;
  const CodebookSource& codebooks_;
  std::vector<Pattern> include_, exclude_, layer_bits_;
};

}  // namespace

bool learns_table(std::string_view method) { return method == "mse" || method == "ldlq"; }
bool searches_scales(std::string_view method) { return learns_table(method) || method == "awq"; }

std::vector<std::string_view> codebook_names() {
  std::vector<std::string_view> names = flute::codebook_names();
  names.emplace_back("kmeans");
  return names;
}

CodebookSource::CodebookSource(const std::string& name) : name_(name), label_(name) {
  const std::vector<std::string_view> names = codebook_names();
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  if (!path_exists(name)) {
    fail(ErrorCode::kInvalidArgument, "codebook: expected one of {} or a file, found '{}'", fmt::join(names, ", "),
         printable(name));
  }
  file_ = read_codebook_file(name);
  label_ = "file:" + std::filesystem::path(name).filename().string();
}

void CodebookSource::check(int bits, const std::string& what) const {
  if (is_fitted()) {
    if (bits < 1 || bits > 8) fail(ErrorCode::kInvalidArgument, "{}: expected 1 to 8 bits, found {}", what, bits);
  } else if (!(codebook_max_magnitude(make(bits, what), is_int()) > 0)) {
    fail(ErrorCode::kInvalidArgument, "codebook {}: expected a value other than 0, found none", name_);
  }
}

Codebook CodebookSource::make(int bits, const std::string& what) const {
  if (!file_) return named_codebook(name_, bits);
  if (file_->bits != bits) {
    fail(ErrorCode::kInvalidArgument, "{}: expected {} bits as the codebook {} has, found {}", what, file_->bits, name_,
         bits);
  }
  return *file_;
}

QuantizationPlan make_plan(const Checkpoint& source, const QuantizeOptions& options, const CodebookSource& codebooks) {
  return Planner(source, options, codebooks).run();
}

nlohmann::ordered_json quantized_config(const Checkpoint& source, const QuantizationPlan& plan) {
  nlohmann::ordered_json config = source.config();
  config["quantization_config"] = plan.config.to_json();
  // Tied, the head would be taken from the embedding again.
  if (plan.splits_tied_head) config["tie_word_embeddings"] = false;
  return config;
}

CheckpointReport planned_report(const QuantizationPlan& plan, DType scale_dtype) {
  CheckpointReport result;
  for (const PlannedShard& shard : plan.shards) {
    for (const PlannedTensor& tensor : shard.tensors) {
      if (!tensor.is_quantized()) {
        result.layers.push_back(plain_layer(*tensor.source));
        continue;
      }
      LayerReport layer;
      layer.name = tensor.prefix;
      layer.quantized = true;
      layer.n = tensor.source->shape[0];
      layer.k = tensor.source->shape[1];
      layer.bits = tensor.layer.bits;
      layer.group_size = tensor.layer.group_size;
      layer.codebook = tensor.layer.codebook;
      for (const TensorPlan& written : written_tensors(tensor, scale_dtype)) layer.bytes += written.bytes();
      result.layers.push_back(std::move(layer));
    }
  }
  summarize(result);
  return result;
}

std::vector<TensorPlan> written_tensors(const PlannedTensor& tensor, DType scale_dtype) {
  if (!tensor.is_quantized()) return {{tensor.source->name, tensor.source->dtype, tensor.source->shape}};
  PackedView shape;  // for its arithmetic
  shape.n = tensor.source->shape[0];
  shape.k = tensor.source->shape[1];
  shape.bits = tensor.layer.bits;
  shape.group_size = tensor.layer.group_size;
  return {{tensor.prefix + ".weight_packed", "I32", {shape.n, shape.words_per_row()}},
          {tensor.prefix + ".weight_scale", std::string(safetensors_name(scale_dtype)), {shape.n, shape.groups()}},
          {tensor.prefix + ".weight_codebook", "F32", {int64_t{1} << shape.bits}}};
}

}  // namespace flute::io
