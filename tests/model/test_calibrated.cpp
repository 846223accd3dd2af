#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "error_of.hpp"
#include "flute/error.hpp"
#include "flute/threads.hpp"
#include "io/scratch.hpp"
#include "model/calibrated.hpp"
#include "model/reference.hpp"

namespace flute::model {
namespace {

using io::Scratch;

const std::string& sample_text() {
  static const std::string text = read_text(examples() / "docs-test-small.txt");
  return text;
}

io::QuantizeOptions options_for(const std::string& method) {
  io::QuantizeOptions options;
  options.bits = 3;
  options.method = method;
  return options;
}

double perplexity_of(const Path& folder) {
  const Model model = Model::load(folder, nullptr);
  const Tokenizer tokenizer = Tokenizer::load(folder / "tokenizer.json");
  const std::string text = sample_text().substr(0, 12000);
  return perplexity(model, tokenizer, text, 256).perplexity;
}

// Calibrated with another part of the text than is predicted: better than rounding, and what was learned is in the
// file.
TEST(QuantizeCalibrated, PredictsBetterThanRounding) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "takes minutes with sanitizers; the tests below run the same code on less text";
#endif
  for (const char* name : {"docs-llama-small", "docs-gemma2-small"}) {
    const Scratch scratch;
    const Path source = examples() / name;
    ThreadPool threads;
    io::quantize_checkpoint(source, scratch / "rtn", options_for("rtn"), &threads, {});
    const CalibrationText text{std::string_view(sample_text()).substr(12000), "text", 8192};
    for (const char* method : {"gptq", "ldlq"}) {
      const CalibratedReport report =
          quantize_calibrated(source, scratch / method, options_for(method), text, &threads);
      EXPECT_EQ(report.tokens, 8192);
      const io::CheckpointReport found = io::inspect_checkpoint(scratch / method);
      EXPECT_EQ(found.bytes, report.checkpoint.bytes);
      const io::Checkpoint checkpoint = io::Checkpoint::open(scratch / method);
      EXPECT_EQ(checkpoint.quantization()->method, method);
      EXPECT_EQ(checkpoint.quantization()->common.codebook, std::string(method) == "ldlq" ? "learned" : "nf");
    }
    const double rtn = perplexity_of(scratch / "rtn"), gptq = perplexity_of(scratch / "gptq");
    const double ldlq = perplexity_of(scratch / "ldlq"), plain = perplexity_of(source);
    EXPECT_LT(gptq, rtn) << name;
    // From rounding's loss at least a third goes.
    EXPECT_LT(std::log(ldlq / plain), 0.67 * std::log(rtn / plain))
        << name << ": " << plain << ' ' << rtn << ' ' << ldlq;
  }
}

TEST(QuantizeCalibrated, ThreadsDoNotChangeAByte) {
  const Scratch scratch;
  const CalibrationText text{sample_text(), "text", 512};
  for (const int count : {1, 2}) {
    ThreadPool threads(count);
    quantize_calibrated(examples() / "docs-llama-small", scratch / std::to_string(count), options_for("ldlq"), text,
                        &threads);
  }
  int shards = 0;
  for (const std::string& file : io::entries(scratch / "1")) {
    if (!file.ends_with(".safetensors")) continue;
    ++shards;
    EXPECT_EQ(io::get(scratch / "2" / file), io::get(scratch / "1" / file)) << file;
  }
  EXPECT_GT(shards, 0);
}

// Layers that stay, layers with other bits, and the head.
TEST(QuantizeCalibrated, TakesTheSameChoiceOfLayers) {
  const Scratch scratch;
  io::QuantizeOptions options = options_for("gptq");
  options.include = {"lm_head"};
  options.exclude = {"k_proj", "layers\\.0\\.mlp"};
  options.layer_bits = {{"o_proj", 4}};
  options.codebook = "kmeans";
  ThreadPool threads;
  quantize_calibrated(examples() / "docs-llama-small", scratch / "a", options, {sample_text(), "text", 1024}, &threads);
  const io::CheckpointReport planned = io::plan_quantization(examples() / "docs-llama-small", options);
  const io::CheckpointReport found = io::inspect_checkpoint(scratch / "a");
  EXPECT_EQ(found.bytes, planned.bytes);
  EXPECT_EQ(found.quantized_bits_per_weight, planned.quantized_bits_per_weight);
  EXPECT_GT(perplexity_of(scratch / "a"), 1.0);
}

// Someone who watches sees it move while statistics are collected, too, and never back or past the end.
TEST(QuantizeCalibrated, ProgressMovesInEveryPass) {
  const Scratch scratch;
  std::map<std::string, int64_t> moved;  // by what was in hand
  int64_t last = 0, end = 0;
  quantize_calibrated(examples() / "docs-llama-small", scratch / "a", options_for("gptq"),
                      {sample_text(), "text", 2048}, nullptr, [&](int64_t done, int64_t total, std::string_view what) {
                        EXPECT_GE(done, last) << what;
                        EXPECT_LE(done, total) << what;
                        moved[std::string(what)] += done - last;
                        last = done;
                        end = total;
                      });
  EXPECT_EQ(last, end);
  for (const char* what : {"inputs of attention", "outputs of attention", "attention", "inputs of the MLP",
                           "activations of the MLP", "MLP", "model.layers.1.mlp.down_proj"}) {
    EXPECT_GT(moved[what], 0) << what;
  }
}

TEST(QuantizeCalibrated, RefusesWithWordsAndLeavesNothing) {
  const Scratch scratch;
  const Path source = examples() / "docs-llama-small";
  const auto error = [&](const std::string& text, const io::QuantizeOptions& options, int64_t tokens = 1024) {
    return error_of([&] { quantize_calibrated(source, scratch / "a", options, {text, "notes.txt", tokens}, nullptr); });
  };
  EXPECT_EQ(error("short", options_for("ldlq")),
            "notes.txt: expected at least one window of 512 tokens, found 4 tokens");
  EXPECT_EQ(error("caf\xe9", options_for("ldlq")), "notes.txt: expected a text in UTF-8, found other bytes");
  EXPECT_EQ(error(sample_text(), options_for("ldlq"), 100),
            "calibration: expected at least one window of 512 tokens, found 100");
  EXPECT_EQ(error(sample_text(), options_for("rtn")), "method: expected gptq or ldlq, found 'rtn'");
  io::QuantizeOptions clipped = options_for("ldlq");
  clipped.clip = 0.9F;
  EXPECT_EQ(error(sample_text(), clipped), "clip: expected 1, since ldlq searches for the scales, found 0.9");
  io::QuantizeOptions embedding = options_for("ldlq");
  embedding.include = {"embed_tokens"};
  EXPECT_EQ(error(sample_text(), embedding),
            "layer 'model.embed_tokens': expected a linear layer of a block or lm_head, which alone have inputs to "
            "calibrate with: leave it out with --exclude");
  EXPECT_EQ(error_of([&] { io::quantize_checkpoint(source, scratch / "a", options_for("gptq"), nullptr, {}); }),
            "method: expected rtn, the one that needs no calibration text, found 'gptq'");
  // Ctrl-C arrives through the progress.
  EXPECT_THROW(quantize_calibrated(source, scratch / "a", options_for("gptq"), {sample_text(), "text", 1024}, nullptr,
                                   [](int64_t done, int64_t, std::string_view) {
                                     if (done > 0) throw std::runtime_error("stop");
                                   }),
               std::runtime_error);
  EXPECT_TRUE(io::entries(scratch.path()).empty());
}

}  // namespace
}  // namespace flute::model
