#include "model/folding.hpp"

#include <cmath>
#include <numeric>
#include <utility>

#include "base/fail.hpp"
#include "io/files.hpp"

namespace flute::model {
namespace {

std::vector<int64_t> count_up(int64_t count) {
  std::vector<int64_t> result(static_cast<size_t>(count));
  std::iota(result.begin(), result.end(), 0);
  return result;
}

}  // namespace

std::array<LayerGroup, 4> layer_groups(const io::ModelConfig& config, int64_t layer) {
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  const bool gemma = config.architecture == io::Architecture::kGemma2;
  const int64_t width = config.hidden_size, head_dim = config.head_dim;
  LayerGroup qkv, output, gate_up, down;
  qkv.names = {prefix + "self_attn.q_proj", prefix + "self_attn.k_proj", prefix + "self_attn.v_proj"};
  qkv.k = width;
  qkv.norm = prefix + "input_layernorm";
  qkv.rows = count_up(width);
  output.names = {prefix + "self_attn.o_proj"};
  output.k = config.num_heads * head_dim;
  output.source = prefix + "self_attn.v_proj";
  output.source_has_bias = config.attention_bias;
  const int64_t shared = config.num_heads / config.num_kv_heads;  // query heads of one value head
  for (int64_t input = 0; input < output.k; ++input) {
    output.rows.push_back(input / head_dim / shared * head_dim + input % head_dim);
  }
  gate_up.names = {prefix + "mlp.gate_proj", prefix + "mlp.up_proj"};
  gate_up.k = width;
  gate_up.norm = prefix + (gemma ? "pre_feedforward_layernorm" : "post_attention_layernorm");
  gate_up.rows = count_up(width);
  down.names = {prefix + "mlp.down_proj"};
  down.k = config.intermediate_size;
  down.source = prefix + "mlp.up_proj";
  down.source_has_bias = config.mlp_bias;
  down.rows = count_up(down.k);
  return {qkv, output, gate_up, down};
}

LayerGroup head_group(const io::ModelConfig& config) {
  LayerGroup head;
  head.names = {"lm_head"};
  head.k = config.hidden_size;
  head.norm = "model.norm";
  head.rows = count_up(head.k);
  return head;
}

void Folding::fold(const LayerGroup& group, std::vector<float> scales) {
  if (group.source.empty()) {
    fold_into_norm(group.norm, scales);
  } else {
    std::vector<float>& divisors = rows_[group.source];
    divisors.resize(static_cast<size_t>(blocks_.checkpoint.at(group.source + ".weight").shape.at(0)), 1.0F);
    for (size_t j = 0; j < scales.size(); ++j) divisors[static_cast<size_t>(group.rows[j])] = scales[j];
  }
  for (const std::string& name : group.names) columns_[name] = scales;
}

void Folding::fold_into_norm(const std::string& norm, std::vector<float>& scales) {
  const io::TensorView& tensor = blocks_.checkpoint.at(norm + ".weight");
  const DType dtype = io::float_dtype(tensor, blocks_.checkpoint.file_of(tensor.name));
  const float added = blocks_.config.architecture == io::Architecture::kGemma2 ? 1.0F : 0.0F;  // as read_norm does
  std::vector<float> stored = read_vector(blocks_.checkpoint, tensor.name, static_cast<int64_t>(scales.size()));
  for (size_t j = 0; j < scales.size(); ++j) {
    const float before = stored[j] + added;
    const float divided = round_to(dtype, before / scales[j] - added);
    const float scale = before / (divided + added);
    const bool fits = std::isfinite(divided) && std::isfinite(scale) && scale > 0;
    scales[j] = fits ? scale : 1.0F;
    if (fits) stored[j] = divided;
  }
  ReplacedTensor& replaced = tensors_[tensor.name];
  replaced.plan = {tensor.name, tensor.dtype, tensor.shape};
  replaced.data.resize(tensor.data.size());
  convert_from_f32(stored.data(), replaced.data.data(), dtype, stored.size());
}

std::vector<float> Folding::columns(std::string_view layer, int64_t k) const {
  const auto found = columns_.find(layer);
  return found == columns_.end() ? std::vector<float>(static_cast<size_t>(k), 1.0F) : found->second;
}

std::vector<float> Folding::weight(std::string_view layer, const io::TensorView& tensor) const {
  const DType dtype = io::float_dtype(tensor, blocks_.checkpoint.file_of(tensor.name));
  const int64_t n = tensor.shape.at(0), k = tensor.shape.at(1);
  std::vector<float> values(static_cast<size_t>(n * k));
  const std::vector<float> factors = columns(layer, k);
  const auto rows = rows_.find(layer);
  parallel_for(blocks_.threads, n, [&](int64_t row) {
    float* const to = values.data() + row * k;
    const auto row_bytes = static_cast<size_t>(k) * dtype_size(dtype);
    convert_to_f32(tensor.data.data() + static_cast<size_t>(row) * row_bytes, dtype, to, static_cast<size_t>(k));
    const float divisor = rows == rows_.end() ? 1.0F : rows->second[static_cast<size_t>(row)];
    for (int64_t j = 0; j < k; ++j) to[j] = to[j] * factors[static_cast<size_t>(j)] / divisor;
  });
  io::release_pages(tensor.data);
  return values;
}

}  // namespace flute::model
