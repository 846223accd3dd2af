#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/files.hpp"
#include "io/scratch.hpp"
#include "model/reference.hpp"

namespace flute::model {

using Json = nlohmann::ordered_json;

inline const Path kLlama = examples() / "docs-llama-small";
inline const Path kGemma = examples() / "docs-gemma2-small";

inline Json config_of(const Path& folder) { return Json::parse(read_text(folder / "config.json")); }

inline std::vector<int32_t> text_ids(const Path& model, size_t count) {
  const Tokenizer tokenizer = Tokenizer::load(model / "tokenizer.json");
  std::vector<int32_t> ids = tokenizer.encode(read_text(examples() / "docs-test-small.txt").substr(0, 10 * count));
  ids.resize(std::min(ids.size(), count));
  EXPECT_EQ(ids.size(), count);
  return ids;
}

inline std::vector<float> all_logits(const Model& model, std::span<const int32_t> ids) {
  KvCache cache = model.make_cache(static_cast<int64_t>(ids.size()));
  return model.forward(ids, cache, Model::Logits::kAll);
}

inline double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b.at(i)));
  return largest;
}

/// Tensors as fp32, to be changed at will.
struct Tensors {
  struct Tensor {
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  std::map<std::string, Tensor> all;

  explicit Tensors(const Path& folder) {
    const io::Checkpoint checkpoint = io::Checkpoint::open(folder);
    for (const io::SafetensorsFile& shard : checkpoint.shards()) {
      for (const io::TensorView& view : shard.tensors()) {
        Tensor& tensor = all[view.name];
        tensor.shape = view.shape;
        const DType dtype = io::float_dtype(view, shard.path());
        tensor.values.resize(view.data.size() / dtype_size(dtype));
        convert_to_f32(view.data.data(), dtype, tensor.values.data(), tensor.values.size());
      }
    }
  }
  void write(const Path& folder, const Json& config) const {
    std::filesystem::create_directories(folder);
    io::put(folder / "config.json", config.dump());
    std::vector<io::TensorPlan> plans;
    for (const auto& entry : all) plans.push_back({entry.first, "F32", entry.second.shape});
    io::SafetensorsWriter writer(folder / "model.safetensors", plans);
    size_t index = 0;
    for (const auto& entry : all) writer.write(index++, std::as_bytes(std::span(entry.second.values)));
    writer.finish();
  }
};

/// The first two blocks of the Llama model, half as wide, with its tokenizer: it predicts nothing, but is as good as
/// the whole where bytes are compared, and with sanitizers that takes minutes.
inline void write_half(const Path& target) {
  Json config = config_of(kLlama);
  const int64_t vocab = config["vocab_size"];
  for (const char* key :
       {"num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"}) {
    config[key] = config[key].get<int64_t>() / 2;
  }
  Tensors tensors(kLlama);
  std::erase_if(tensors.all, [](const auto& entry) {
    return entry.first.starts_with("model.layers.2.") || entry.first.starts_with("model.layers.3.");
  });
  for (auto& entry : tensors.all) {
    Tensors::Tensor& tensor = entry.second;
    const int64_t columns = tensor.shape.back() / 2;
    if (tensor.shape.size() > 1 && tensor.shape[0] != vocab) tensor.shape[0] /= 2;
    const int64_t rows = tensor.shape.size() > 1 ? tensor.shape[0] : 1;
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(tensor.values.begin() + row * 2 * columns, columns, tensor.values.begin() + row * columns);
    }
    tensor.values.resize(static_cast<size_t>(rows * columns));
    tensor.shape.back() = columns;
  }
  tensors.write(target, config);
  std::filesystem::copy(kLlama / "tokenizer.json", target);
}

}  // namespace flute::model
