#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/seed.hpp"
#include "model/folding.hpp"
#include "model/tensors.hpp"

namespace flute::model {
namespace {

using io::Scratch;

/// Scales around 1 up to some tens, one for each row that the group's inputs come from.
std::vector<float> random_scales(std::mt19937_64& random, const LayerGroup& group) {
  std::lognormal_distribution<float> distribution(0.0F, 1.0F);
  std::map<int64_t, float> of_row;
  std::vector<float> scales;
  for (const int64_t row : group.rows) {
    if (!of_row.contains(row)) of_row[row] = distribution(random);
    scales.push_back(of_row[row]);
  }
  return scales;
}

/// `source` with random scales folded into all of it, as fp32 (norms: fp32 of what is stored in the source's dtype).
/// Returns the names of the tensors that became others.
std::vector<std::string> write_folded(const Path& source, const Path& target, std::mt19937_64& random) {
  const Blocks blocks(source, nullptr);
  std::vector<LayerGroup> groups;
  for (int64_t layer = 0; layer < blocks.config.num_layers; ++layer) {
    for (LayerGroup& group : layer_groups(blocks.config, layer)) groups.push_back(std::move(group));
  }
  if (blocks.checkpoint.find("lm_head.weight") != nullptr) groups.push_back(head_group(blocks.config));
  Folding folding(blocks);
  for (const LayerGroup& group : groups) folding.fold(group, random_scales(random, group));

  Tensors tensors(source);
  std::vector<std::string> changed;
  const auto replace = [&](const std::string& name, std::vector<float> values) {
    if (tensors.all.at(name).values != values) changed.push_back(name);
    tensors.all.at(name).values = std::move(values);
  };
  for (const LayerGroup& group : groups) {
    for (const std::string& name : group.names) {
      replace(name + ".weight", folding.weight(name, blocks.checkpoint.at(name + ".weight")));
    }
  }
  for (const auto& [name, tensor] : folding.tensors()) {
    const io::TensorView& before = blocks.checkpoint.at(name);
    EXPECT_EQ(tensor.plan.dtype, before.dtype) << name;
    EXPECT_EQ(tensor.data.size(), before.data.size()) << name;
    std::vector<float> values(tensors.all.at(name).values.size());
    convert_to_f32(tensor.data.data(), io::float_dtype(before, source), values.data(), values.size());
    replace(name, std::move(values));
  }
  tensors.write(target, config_of(source));
  return changed;
}

/// Sums of products that were rounded otherwise: some 1e-6 of logits up to 30 in each of 4 blocks.
constexpr double kTolerance = 1e-3;

class FoldingOf : public testing::TestWithParam<Path> {};
INSTANTIATE_TEST_SUITE_P(Models, FoldingOf, testing::Values(kLlama, kGemma), [](const auto& values) {
  return values.param == kLlama ? std::string("llama") : std::string("gemma2");
});

// Scales move weights about, not what the model says: also where heads share values (both models' do), where norms hold
// 1 + w, and though norms are stored in bf16.
TEST_P(FoldingOf, LeavesTheLogits) {
  const Scratch scratch;
  auto random = fresh_random();
  const std::vector<std::string> changed = write_folded(GetParam(), scratch / "folded", random);
  const auto is_changed = [&](const std::string& name) {
    return std::find(changed.begin(), changed.end(), name + ".weight") != changed.end();
  };
  const std::string norm = GetParam() == kGemma ? "pre_feedforward_layernorm" : "post_attention_layernorm";
  for (const std::string& name :
       {std::string("input_layernorm"), norm, std::string("self_attn.q_proj"), std::string("self_attn.k_proj"),
        std::string("self_attn.v_proj"), std::string("self_attn.o_proj"), std::string("mlp.gate_proj"),
        std::string("mlp.up_proj"), std::string("mlp.down_proj")}) {
    EXPECT_TRUE(is_changed("model.layers.2." + name)) << name;
  }
  const std::vector<int32_t> ids = text_ids(GetParam(), 200);
  EXPECT_LT(largest_difference(all_logits(Model::load(scratch / "folded", nullptr), ids),
                               all_logits(Model::load(GetParam(), nullptr), ids)),
            kTolerance);
}

// A norm's weight of 0 (1 + w: w = -1) cannot be divided; its input is 0 whatever its scale.
TEST_P(FoldingOf, TakesNormsWithZeros) {
  const Scratch scratch;
  auto random = fresh_random();
  Tensors tensors(GetParam());
  const float zero = GetParam() == kGemma ? -1.0F : 0.0F;
  for (const int64_t layer : {0, 1, 2, 3}) {
    std::vector<float>& values = tensors.all.at(fmt::format("model.layers.{}.input_layernorm.weight", layer)).values;
    for (size_t i = static_cast<size_t>(layer); i < values.size(); i += 5) values[i] = zero;
  }
  tensors.write(scratch / "zeros", config_of(GetParam()));
  std::filesystem::copy(GetParam() / "tokenizer.json", scratch / "zeros");
  write_folded(scratch / "zeros", scratch / "folded", random);
  const std::vector<int32_t> ids = text_ids(GetParam(), 100);
  const std::vector<float> found = all_logits(Model::load(scratch / "folded", nullptr), ids);
  EXPECT_TRUE(std::all_of(found.begin(), found.end(), [](float value) { return std::isfinite(value); }));
  EXPECT_LT(largest_difference(found, all_logits(Model::load(scratch / "zeros", nullptr), ids)), kTolerance);
}

}  // namespace
}  // namespace flute::model
