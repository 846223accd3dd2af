#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/seed.hpp"
#include "error_of.hpp"
#include "io/pipelines.hpp"
#include "io/scratch.hpp"
#include "model/linear.hpp"
#include "model/reference.hpp"
#include "model/tensors.hpp"

namespace flute::model {
namespace {

using io::Scratch;

std::string load_error(const Path& folder) {
  return error_of([&] { (void)Model::load(folder, nullptr); });
}

class Runtime : public testing::TestWithParam<Path> {};
INSTANTIATE_TEST_SUITE_P(Models, Runtime, testing::Values(kLlama, kGemma), [](const auto& values) {
  return values.param == kLlama ? std::string("llama") : std::string("gemma2");
});

// 600 tokens: more than a chunk of the prefill, and more than four of Gemma's sliding windows.
TEST_P(Runtime, TokensOneByOneOrInPiecesGiveTheLogitsOfAllAtOnce) {
  ThreadPool threads(2);
  const Model model = Model::load(GetParam(), &threads);
  const std::vector<int32_t> ids = text_ids(GetParam(), 600);
  const std::vector<float> expected = all_logits(model, ids);
  for (const size_t piece : {size_t{1}, size_t{37}}) {
    KvCache cache = model.make_cache(600);
    std::vector<float> found;
    for (size_t begin = 0; begin < ids.size(); begin += piece) {
      const auto part = std::span(ids).subspan(begin, std::min(piece, ids.size() - begin));
      const std::vector<float> logits = model.forward(part, cache, Model::Logits::kAll);
      found.insert(found.end(), logits.begin(), logits.end());
    }
    EXPECT_EQ(cache.size(), 600);
    // Sums of another order: some 1e-6 of logits up to 30 in each of 4 blocks.
    EXPECT_LT(largest_difference(found, expected), 1e-3) << piece;
  }
}

TEST_P(Runtime, LogProbabilitiesAreTheLogitsSoftmax) {
  const Model model = Model::load(GetParam(), nullptr);
  const std::vector<int32_t> ids = text_ids(GetParam(), 40);
  const std::vector<float> logits = all_logits(model, ids);
  const size_t vocab = static_cast<size_t>(model.config().vocab_size);
  KvCache cache = model.make_cache(40);
  const std::vector<double> found = model.log_probabilities(ids, cache);
  ASSERT_EQ(found.size(), 39U);
  for (size_t i = 0; i < found.size(); ++i) {
    double total = 0;
    for (size_t j = 0; j < vocab; ++j) total += std::exp(static_cast<double>(logits[i * vocab + j]));
    EXPECT_NEAR(found[i], logits[i * vocab + static_cast<size_t>(ids[i + 1])] - std::log(total), 1e-5);
  }
}

TEST_P(Runtime, TheSameBitsForAnyNumberOfThreads) {
  const std::vector<int32_t> ids = text_ids(GetParam(), 150);
  const std::vector<float> expected = all_logits(Model::load(GetParam(), nullptr), ids);
  for (const int count : {2, 3}) {
    ThreadPool threads(count);
    EXPECT_EQ(all_logits(Model::load(GetParam(), &threads), ids), expected) << count;
  }
}

TEST_P(Runtime, TheHubsOlderRopeSettingsMeanTheSame) {
  const Scratch scratch;
  Json config = config_of(GetParam());
  config["rope_theta"] = config["rope_parameters"]["rope_theta"];
  config["rope_scaling"] = nullptr;
  config.erase("rope_parameters");
  std::filesystem::copy(GetParam(), scratch / "old");
  io::put(scratch / "old/config.json", config.dump());
  const std::vector<int32_t> ids = text_ids(GetParam(), 50);
  EXPECT_EQ(all_logits(Model::load(scratch / "old", nullptr), ids), all_logits(Model::load(GetParam(), nullptr), ids));
}

// The runtime must compute with the values that dequantize writes, whichever layers are stacked or left as they are.
TEST_P(Runtime, AQuantizedCheckpointIsItsDequantizedOne) {
  const Scratch scratch;
  ThreadPool threads(2);
  io::QuantizeOptions uniform, mixed;
  mixed.bits = 3;
  mixed.group_size = 32;
  mixed.codebook = "kmeans";
  mixed.include = {"lm_head"};
  mixed.exclude = {"layers.1.*k_proj", "layers.2.*q_proj"};
  mixed.layer_bits = {{"layers.0.*k_proj", 5}, {"up_proj", 4}};
  const std::vector<int32_t> ids = text_ids(GetParam(), 200);
  const std::vector<float> original = all_logits(Model::load(GetParam(), &threads), ids);
  int number = 0;
  for (const io::QuantizeOptions& options : {uniform, mixed}) {
    const Path quantized = scratch / fmt::format("quantized-{}", number);
    const Path plain = scratch / fmt::format("plain-{}", number++);
    io::quantize_checkpoint(GetParam(), quantized, options, &threads, {});
    io::dequantize_checkpoint(quantized, plain, DType::kF32, false, &threads, {});
    const Model model = Model::load(quantized, &threads);
    const std::vector<float> found = all_logits(model, ids);
    EXPECT_LT(largest_difference(found, all_logits(Model::load(plain, &threads), ids)), 2e-3);
    EXPECT_GT(largest_difference(found, original), 0.01);  // it is quantized
    EXPECT_LT(model.weight_bytes(), Model::load(plain, &threads).weight_bytes() / 2);
  }
}

TEST(Linear, LayersOfOneKindAreOneMatrix) {
  const Scratch scratch;
  io::QuantizeOptions options;
  options.layer_bits = {{"layers.1.*k_proj", 3}};
  io::quantize_checkpoint(kLlama, scratch / "q", options, nullptr, {});
  const io::Checkpoint plain = io::Checkpoint::open(kLlama);
  const io::Checkpoint quantized = io::Checkpoint::open(scratch / "q");
  const auto matrices = [](const io::Checkpoint& checkpoint, int layer) {
    std::vector<LayerName> names;
    for (const char* part : {"q", "k", "v"}) {
      names.push_back({fmt::format("model.layers.{}.self_attn.{}_proj", layer, part), part[0] == 'q' ? 256 : 128});
    }
    return Linear(checkpoint, names, 256, false, nullptr).matrix_count();
  };
  EXPECT_EQ(matrices(plain, 0), 1U);
  EXPECT_EQ(matrices(quantized, 0), 1U);
  EXPECT_EQ(matrices(quantized, 1), 3U);
}

// As attention's weights sum to 1, a bias of v is the bias W_o b of the output.
TEST(Model, AttentionBiases) {
  const Scratch scratch;
  Tensors of_value(kLlama);
  Json config = config_of(kLlama);
  config["attention_bias"] = true;
  for (int layer = 0; layer < 4; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.self_attn.", layer);
    of_value.all[prefix + "q_proj.bias"] = {{256}, std::vector<float>(256)};
    of_value.all[prefix + "k_proj.bias"] = {{128}, std::vector<float>(128)};
    of_value.all[prefix + "v_proj.bias"] = {{128}, std::vector<float>(128)};
    of_value.all[prefix + "o_proj.bias"] = {{256}, std::vector<float>(256)};
  }
  Tensors of_output = of_value;
  std::vector<float>& bias = of_value.all["model.layers.1.self_attn.v_proj.bias"].values;
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = 0.5F * std::sin(static_cast<float>(i));
  const std::vector<float>& weight = of_value.all["model.layers.1.self_attn.o_proj.weight"].values;
  for (size_t n = 0; n < 256; ++n) {
    for (size_t k = 0; k < 256; ++k) {  // two query heads of 64 components share each head of v
      of_output.all["model.layers.1.self_attn.o_proj.bias"].values[n] +=
          weight[n * 256 + k] * bias[k / 128 * 64 + k % 64];
    }
  }
  of_value.write(scratch / "value", config);
  of_output.write(scratch / "output", config);
  const std::vector<int32_t> ids = text_ids(kLlama, 30);
  const std::vector<float> found = all_logits(Model::load(scratch / "value", nullptr), ids);
  EXPECT_LT(largest_difference(found, all_logits(Model::load(scratch / "output", nullptr), ids)), 1e-3);
  EXPECT_GT(largest_difference(found, all_logits(Model::load(kLlama, nullptr), ids)), 0.1);
}

// With a gate of silu(1) everywhere, a bias of up is the bias silu(1) W_down b of down.
TEST(Model, MlpBiases) {
  const Scratch scratch;
  Tensors of_up(kLlama);
  Json config = config_of(kLlama);
  config["mlp_bias"] = true;
  for (int layer = 0; layer < 4; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.mlp.", layer);
    of_up.all[prefix + "gate_proj.bias"] = {{768}, std::vector<float>(768)};
    of_up.all[prefix + "up_proj.bias"] = {{768}, std::vector<float>(768)};
    of_up.all[prefix + "down_proj.bias"] = {{256}, std::vector<float>(256)};
  }
  std::vector<float>& gate = of_up.all["model.layers.2.mlp.gate_proj.weight"].values;
  std::fill(gate.begin(), gate.end(), 0.0F);
  of_up.all["model.layers.2.mlp.gate_proj.bias"].values.assign(768, 1.0F);
  Tensors of_down = of_up;
  std::vector<float>& bias = of_up.all["model.layers.2.mlp.up_proj.bias"].values;
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = std::sin(static_cast<float>(i));
  const std::vector<float>& weight = of_up.all["model.layers.2.mlp.down_proj.weight"].values;
  for (size_t n = 0; n < 256; ++n) {
    for (size_t k = 0; k < 768; ++k) {
      of_down.all["model.layers.2.mlp.down_proj.bias"].values[n] += 0.7310586F * weight[n * 768 + k] * bias[k];
    }
  }
  of_up.write(scratch / "up", config);
  of_down.write(scratch / "down", config);
  const std::vector<int32_t> ids = text_ids(kLlama, 30);
  const std::vector<float> found = all_logits(Model::load(scratch / "up", nullptr), ids);
  EXPECT_LT(largest_difference(found, all_logits(Model::load(scratch / "down", nullptr), ids)), 1e-3);
}

TEST(Model, ATiedHeadIsTheEmbedding) {
  const Scratch scratch;
  Tensors tensors(kLlama);
  tensors.all["lm_head.weight"] = tensors.all["model.embed_tokens.weight"];
  Json config = config_of(kLlama);
  tensors.write(scratch / "untied", config);
  tensors.all.erase("lm_head.weight");
  config["tie_word_embeddings"] = true;
  tensors.write(scratch / "tied", config);
  const std::vector<int32_t> ids = text_ids(kLlama, 20);
  EXPECT_EQ(all_logits(Model::load(scratch / "tied", nullptr), ids),
            all_logits(Model::load(scratch / "untied", nullptr), ids));
}

TEST(Model, WeightsThatAreNotTheConfigsAreNamed) {
  const Scratch scratch;
  const Json config = config_of(kLlama);
  const std::string down = "model.layers.3.mlp.down_proj.weight";
  Tensors missing(kLlama);
  missing.all.erase(down);
  missing.write(scratch / "missing", config);
  EXPECT_NE(load_error(scratch / "missing").find(down), std::string::npos);

  Tensors transposed(kLlama);
  transposed.all[down].shape = {768, 256};
  transposed.write(scratch / "transposed", config);
  const std::string message = load_error(scratch / "transposed");
  EXPECT_NE(message.find("model.safetensors: tensor '" + down + "': expected shape [256, 768], found [768, 256]"),
            std::string::npos)
      << message;

  Json other = config;
  other["architectures"] = {"MambaForCausalLM"};
  Tensors(kLlama).write(scratch / "other", other);
  EXPECT_NE(load_error(scratch / "other").find("MambaForCausalLM"), std::string::npos);
}

TEST(Model, InputThatDoesNotFitIsRefusedAndLeavesTheCacheAlone) {
  const Model model = Model::load(kLlama, nullptr);
  KvCache cache = model.make_cache(4);
  const auto run = [&](std::vector<int32_t> ids) { (void)model.forward(ids, cache, Model::Logits::kLast); };
  run({1, 2, 3});
  EXPECT_NE(error_of([&] { run({4, 5}); }).find("1 tokens"), std::string::npos);
  EXPECT_NE(error_of([&] { run({2048}); }).find("2047"), std::string::npos);
  EXPECT_THROW(run({-1}), Error);
  EXPECT_THROW(run({}), Error);
  EXPECT_EQ(cache.size(), 3);
  EXPECT_NO_THROW(run({4}));
  EXPECT_NE(error_of([&] { (void)model.make_cache(2049); }).find("2048"), std::string::npos);
  EXPECT_THROW((void)model.make_cache(0), Error);
}

TEST(Generate, StopsAfterEosAndAtTheEndOfTheContext) {
  const Model model = Model::load(kLlama, nullptr);
  const auto sample = reference(kLlama).at("samples").at(0);
  const auto prompt = sample.at("input_ids").get<std::vector<int32_t>>();
  const auto greedy = sample.at("greedy_ids").get<std::vector<int32_t>>();
  const std::vector<int32_t> eos = {greedy.at(prompt.size() + 3)};
  const auto first = std::find(greedy.begin() + static_cast<ptrdiff_t>(prompt.size()), greedy.end(), eos[0]);
  std::vector<int32_t> streamed;
  const GenerationResult result = generate(model, prompt, 48, {}, eos, [&](int32_t id) { streamed.push_back(id); });
  EXPECT_EQ(result.ids, std::vector<int32_t>(greedy.begin(), first + 1));
  EXPECT_EQ(static_cast<size_t>(result.new_tokens), streamed.size());
  EXPECT_TRUE(std::equal(streamed.rbegin(), streamed.rend(), result.ids.rbegin()));

  const std::vector<int32_t> long_prompt(2046, 5);
  EXPECT_EQ(generate(model, long_prompt, 100, {}, {}).new_tokens, 3);  // the last one needs no position
  EXPECT_THROW(generate(model, std::vector<int32_t>(2049, 5), 1, {}, {}), Error);
  EXPECT_THROW(generate(model, {}, 1, {}, {}), Error);
}

TEST(Perplexity, LinesOfOneNulSeparateDocuments) {
  using namespace std::string_view_literals;
  using Parts = std::vector<std::string_view>;
  EXPECT_EQ(split_documents("one\n\0\ntwo\n\n\0\nthree\n"sv), (Parts{"one", "two\n", "three\n"}));
  EXPECT_EQ(split_documents("a\0b\n\0c"sv), (Parts{"a\0b\n\0c"sv}));
}

TEST(Perplexity, RefusesWindowsThatCannotBe) {
  const Model model = Model::load(kLlama, nullptr);
  const Tokenizer tokenizer = Tokenizer::load(kLlama / "tokenizer.json");
  EXPECT_THROW(perplexity(model, tokenizer, "some text", 1), Error);
  EXPECT_THROW(perplexity(model, tokenizer, "some text", 4096), Error);
  const size_t tokens = tokenizer.encode("some text", false).size() + 2;  // and bos and eos
  EXPECT_EQ(error_of([&] { perplexity(model, tokenizer, "some text", 512); }),
            "text: expected at least one window of 512 tokens, found " + std::to_string(tokens) + " tokens");
}

}  // namespace
}  // namespace flute::model
