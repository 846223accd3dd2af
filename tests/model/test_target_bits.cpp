#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "error_of.hpp"
#include "flute/error.hpp"
#include "flute/threads.hpp"
#include "io/scratch.hpp"
#include "model/calibrated.hpp"
#include "model/reference.hpp"
#include "model/sensitivity.hpp"
#include "model/tensors.hpp"

namespace flute::model {
namespace {

using io::Scratch;

const std::string& sample_text() {
  static const std::string text = read_text(examples() / "docs-test-small.txt");
  return text;
}

io::QuantizeOptions options_for(double bits, const std::string& method) {
  io::QuantizeOptions options;
  options.method = method;
  options.target.emplace().bits = bits;
  return options;
}

/// Of `ids`, each a prediction's context together with those before it.
double divergence_of(const Path& original, const Path& changed, std::span<const int32_t> ids) {
  const auto logits_of = [&](const Path& folder) {
    const Model model = Model::load(folder, nullptr);
    KvCache cache = model.make_cache(static_cast<int64_t>(ids.size()));
    return model.forward(ids, cache, Model::Logits::kAll);
  };
  const std::vector<float> expected = logits_of(original), found = logits_of(changed);
  const size_t vocab = expected.size() / ids.size();
  double sum = 0;
  for (size_t row = 0; row < ids.size(); ++row) {
    const float *p = expected.data() + row * vocab, *q = found.data() + row * vocab;
    double p_sum = 0, q_sum = 0;
    for (size_t i = 0; i < vocab; ++i) {
      p_sum += std::exp(double{p[i]});
      q_sum += std::exp(double{q[i]});
    }
    for (size_t i = 0; i < vocab; ++i) {
      sum += std::exp(double{p[i]}) / p_sum * (double{p[i]} - std::log(p_sum) - double{q[i]} + std::log(q_sum));
    }
  }
  return sum / static_cast<double>(ids.size());
}

// As if each group had been quantized in a checkpoint of its own, and the two models' predictions compared. Gemma's
// blocks have norms behind their parts and a head tied to the embedding.
TEST(MeasureDivergence, IsThatOfTheModelWithOneGroupChanged) {
  for (const Path& source : {kLlama, kGemma}) {
    const Scratch scratch;
    const Blocks blocks(source, nullptr);
    const std::vector<int32_t> ids = calibration_ids(blocks, {sample_text(), "text", 512});
    const std::vector<LayerGroup> groups = {layer_groups(blocks.config, 0)[1], layer_groups(blocks.config, 1)[0],
                                            layer_groups(blocks.config, 1)[3], head_group(blocks.config)};
    std::vector<double> expected;
    for (size_t i = 0; i < groups.size(); ++i) {
      io::QuantizeOptions options;
      options.bits = 3;
      options.include = {"lm_head"};
      options.exclude = {fmt::format("^(?!({})$)", fmt::join(groups[i].names, "|"))};
      io::quantize_checkpoint(source, scratch / std::to_string(i), options, nullptr, {});
      expected.push_back(divergence_of(source, scratch / std::to_string(i), ids));
    }
    const std::vector<double> found =
        measure_divergence(blocks, ids, static_cast<int64_t>(ids.size()), groups, [&](const LayerGroup& group) {
          PackedLayers layers;
          for (const std::string& name : group.names) {
            const bool tied = name == "lm_head" && blocks.config.tie_word_embeddings;
            const io::TensorView& tensor = blocks.checkpoint.at((tied ? "model.embed_tokens" : name) + ".weight");
            layers.emplace(
                name, quantize_rtn(tensor.data.data(), io::float_dtype(tensor, blocks.checkpoint.file_of(tensor.name)),
                                   tensor.shape[0], tensor.shape[1], named_codebook("nf", 3), {}));
          }
          return layers;
        });
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT_GT(expected[i], 1e-4);
      // fp32 logits of some 10 differ by 1e-6 or so for sums in another order; a divergence by the same at most.
      EXPECT_NEAR(found[i], expected[i], 1e-5) << groups[i].names.front();
    }
  }
}

TEST(TargetBits, KeepsToTheBudgetAndLayersTogether) {
  const Scratch scratch;
  write_half(scratch / "source");
  ThreadPool threads;
  int trial = 0;
  for (const double target : {2.2, 3.25}) {
    const Path folder = scratch / std::to_string(trial++);
    const CalibratedReport report = quantize_calibrated(scratch / "source", folder, options_for(target, "gptq"),
                                                        {sample_text(), "text", 512}, &threads);
    const io::CheckpointReport found = io::inspect_checkpoint(folder);
    EXPECT_EQ(found.quantized_bits_per_weight, report.checkpoint.quantized_bits_per_weight);
    EXPECT_LE(found.quantized_bits_per_weight, target);
    EXPECT_GT(found.quantized_bits_per_weight, target - 0.1);
    const io::Checkpoint checkpoint = io::Checkpoint::open(folder);
    size_t layers = 0;
    for (const ChosenFormat& chosen : report.chosen) {
      for (const std::string& name : chosen.names) {
        EXPECT_EQ(checkpoint.quantization()->layer(name).bits, chosen.format.bits) << name;
        EXPECT_EQ(checkpoint.quantization()->layer(name).group_size, chosen.format.group_size) << name;
        ++layers;
      }
    }
    EXPECT_EQ(layers, checkpoint.quantized_layers().size());
  }
}

TEST(TargetBits, ThreadsDoNotChangeTheChoiceAndARunGoesOn) {
  const Scratch scratch;
  const Path source = scratch / "source";
  write_half(source);
  const io::QuantizeOptions options = options_for(3.25, "gptq");
  const CalibrationText text{sample_text(), "text", 512};
  {
    ThreadPool threads(2);
    quantize_calibrated(source, scratch / "2", options, text, &threads);
  }
  struct Stop {};
  EXPECT_THROW(quantize_calibrated(source, scratch / "1", options, text, nullptr,
                                   [](int64_t, int64_t, std::string_view what) {
                                     if (what.starts_with("model.layers.1")) throw Stop();
                                   }),
               Stop);
  EXPECT_GT(quantize_calibrated(source, scratch / "1", options, text, nullptr).resumed_blocks, 0);
  for (const std::string& file : io::entries(scratch / "1")) {
    if (file == "config.json" || file.ends_with(".safetensors")) {
      EXPECT_EQ(io::get(scratch / "2" / file), io::get(scratch / "1" / file)) << file;
    }
  }
}

TEST(TargetBits, RefusesWhatCannotBe) {
  const Scratch scratch;
  const CalibrationText text{sample_text(), "text", 512};
  const auto error = [&](const io::QuantizeOptions& options) {
    return error_of(ErrorCode::kInvalidArgument,
                    [&] { quantize_calibrated(kLlama, scratch / "a", options, text, nullptr); });
  };
  EXPECT_TRUE(error(options_for(2.0, "ldlq")).starts_with("target bits: expected at least the 2.0"));
  io::QuantizeOptions both = options_for(3, "ldlq");
  both.layer_bits = {{"o_proj", 4}};
  EXPECT_EQ(error(both), "target bits: expected no bits for single layers with it, found some for 'o_proj'");
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument,
                     [&] { io::quantize_checkpoint(kLlama, scratch / "a", options_for(3, "mse"), nullptr, {}); }),
            "target bits: expected a quantizer that calibrates, which measures what layers cost");
  EXPECT_TRUE(io::entries(scratch.path()).empty());
}

}  // namespace
}  // namespace flute::model
