#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/seed.hpp"
#include "error_of.hpp"
#include "flute/error.hpp"
#include "flute/threads.hpp"
#include "io/scratch.hpp"
#include "model/calibrated.hpp"
#include "model/reference.hpp"
#include "model/tensors.hpp"

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

/// Of the text's first `bytes`.
double perplexity_of(const Path& folder, size_t bytes) {
  const Model model = Model::load(folder, nullptr);
  const Tokenizer tokenizer = Tokenizer::load(folder / "tokenizer.json");
  const std::string text = sample_text().substr(0, bytes);
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
    for (const char* method : {"awq", "gptq", "ldlq"}) {
      const CalibratedReport report =
          quantize_calibrated(source, scratch / method, options_for(method), text, &threads);
      EXPECT_EQ(report.tokens, 8192);
      const io::CheckpointReport found = io::inspect_checkpoint(scratch / method);
      EXPECT_EQ(found.bytes, report.checkpoint.bytes);
      const io::Checkpoint checkpoint = io::Checkpoint::open(scratch / method);
      EXPECT_EQ(checkpoint.quantization()->method, method);
      EXPECT_EQ(checkpoint.quantization()->common.codebook, std::string(method) == "ldlq" ? "learned" : "nf");
    }
    constexpr size_t kBytes = 12000;
    const double rtn = perplexity_of(scratch / "rtn", kBytes), gptq = perplexity_of(scratch / "gptq", kBytes);
    const double ldlq = perplexity_of(scratch / "ldlq", kBytes), plain = perplexity_of(source, kBytes);
    EXPECT_LT(gptq, rtn) << name;
    EXPECT_LT(perplexity_of(scratch / "awq", kBytes), rtn) << name;
    // From rounding's loss at least a third goes.
    EXPECT_LT(std::log(ldlq / plain), 0.67 * std::log(rtn / plain))
        << name << ": " << plain << ' ' << rtn << ' ' << ldlq;
  }
}

TEST(QuantizeCalibrated, ThreadsDoNotChangeAByte) {
  for (const char* method : {"awq", "ldlq"}) {
    const Scratch scratch;
    write_half(scratch / "source");
    const CalibrationText text{sample_text(), "text", 512};
    for (const int count : {1, 2}) {
      ThreadPool threads(count);
      quantize_calibrated(scratch / "source", scratch / std::to_string(count), options_for(method), text, &threads);
    }
    int shards = 0;
    for (const std::string& file : io::entries(scratch / "1")) {
      if (!file.ends_with(".safetensors")) continue;
      ++shards;
      EXPECT_EQ(io::get(scratch / "2" / file), io::get(scratch / "1" / file)) << method << ' ' << file;
    }
    EXPECT_GT(shards, 0);
  }
}

// Scales that were multiplied in one place and not divided by in the other would be seen here: 8 bits hardly round.
// Both heads, too: Gemma's is tied to the embedding, which has to stay.
TEST(QuantizeCalibrated, AwqLeavesTheModelWhatItIs) {
  for (const Path& source : {kLlama, kGemma}) {
    const Scratch scratch;
    io::QuantizeOptions options = options_for("awq");
    options.bits = 8;
    options.include = {"lm_head"};
    options.exclude = {R"(layers\.[12]\.)"};  // two blocks of the four show it in half the time
    ThreadPool threads;
    quantize_calibrated(source, scratch / "a", options, {sample_text(), "text", 512}, &threads);
    EXPECT_NEAR(perplexity_of(scratch / "a", 4000) / perplexity_of(source, 4000), 1, 2e-3) << source;
    const io::Checkpoint before = io::Checkpoint::open(source), after = io::Checkpoint::open(scratch / "a");
    for (const char* norm : {"model.layers.0.input_layernorm.weight", "model.norm.weight"}) {
      const std::span<const std::byte> old = before.at(norm).data, now = after.at(norm).data;
      EXPECT_FALSE(std::equal(old.begin(), old.end(), now.begin(), now.end())) << source << ": nothing was folded";
    }
  }
}

// A bias of v or up is no row of theirs: their rows keep 1, and the norms' scales leave biases alone.
TEST(QuantizeCalibrated, AwqTakesBiases) {
  const Scratch scratch;
  Tensors tensors(kLlama);
  Json config = config_of(kLlama);
  config["attention_bias"] = config["mlp_bias"] = true;
  auto random = fresh_random();
  std::normal_distribution<float> normal(0.0F, 0.1F);
  for (const int64_t block : {0, 1, 2, 3}) {
    for (const char* layer : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                              "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
      const std::string name = fmt::format("model.layers.{}.{}.", block, layer);
      const bool is_source = name.ends_with("v_proj.") || name.ends_with("up_proj.");
      std::vector<float> values(static_cast<size_t>(tensors.all.at(name + "weight").shape[0]));
      for (float& value : values) value = is_source ? normal(random) : 0.01F * normal(random);
      tensors.all[name + "bias"] = {{static_cast<int64_t>(values.size())}, std::move(values)};
    }
  }
  const Path source = scratch / "biased";
  tensors.write(source, config);
  std::filesystem::copy(kLlama / "tokenizer.json", source);
  io::QuantizeOptions options = options_for("awq");
  options.bits = 8;
  ThreadPool threads;
  quantize_calibrated(source, scratch / "a", options, {sample_text(), "text", 512}, &threads);
  // Scales in rows with a bias would change it by 5 % and more.
  EXPECT_NEAR(perplexity_of(scratch / "a", 4000) / perplexity_of(source, 4000), 1, 1e-2);
}

// A scale has to be in all layers that share inputs, and divided by where those come from.
TEST(QuantizeCalibrated, AwqRefusesLayersThatCannotTakePart) {
  const Scratch scratch;
  const auto error = [&](std::vector<std::string> exclude) {
    io::QuantizeOptions options = options_for("awq");
    options.exclude = std::move(exclude);
    return error_of([&] {
      quantize_calibrated(examples() / "docs-llama-small", scratch / "a", options, {sample_text(), "text", 512},
                          nullptr);
    });
  };
  EXPECT_EQ(error({"k_proj"}),
            "method awq: layer 'model.layers.0.self_attn.k_proj': expected it to be quantized as "
            "'model.layers.0.self_attn.q_proj' is, whose scaled inputs it shares, found it left out: leave out both, "
            "or none");
  EXPECT_EQ(error({"layers.2.mlp.(gate|up)"}),
            "method awq: layer 'model.layers.2.mlp.up_proj': expected it to be quantized as "
            "'model.layers.2.mlp.down_proj' is, whose scales go into its rows, found it left out: leave out both, or "
            "none");
  EXPECT_TRUE(io::entries(scratch.path()).empty());
  // Whole groups may stay, and a group whose inputs stay another's.
  io::QuantizeOptions options = options_for("awq");
  options.exclude = {"layers.0.self_attn", "mlp.down_proj"};
  quantize_calibrated(examples() / "docs-llama-small", scratch / "a", options, {sample_text(), "text", 512}, nullptr);
  EXPECT_EQ(io::entries(scratch.path()), std::vector<std::string>{"a"});
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
  EXPECT_GT(perplexity_of(scratch / "a", 4000), 1.0);
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

/// A calibrated run of docs-llama-small (4 blocks), or of `source`, ended at the first sign of block `stop`.
struct Attempt {
  Path target;
  io::QuantizeOptions options = options_for("gptq");
  std::string text = sample_text();
  Path source = examples() / "docs-llama-small";
  std::vector<std::string> seen = {};  // what was in hand

  CalibratedReport go(const std::string& stop = "none") {
    seen.clear();
    return quantize_calibrated(source, target, options, {text, "text", 1024}, nullptr,
                               [&](int64_t, int64_t, std::string_view what) {
                                 seen.emplace_back(what);
                                 if (what.starts_with(stop)) throw std::runtime_error("stop");
                               });
  }
  void stop_at(const std::string& what) { EXPECT_THROW(go(what), std::runtime_error); }
  std::string error() {
    return error_of([&] { go(); });
  }
};

void expect_same_files(const Path& found, const Path& expected) {
  ASSERT_EQ(io::entries(found), io::entries(expected));
  for (const std::string& file : io::entries(expected)) {
    EXPECT_TRUE(io::get(found / file) == io::get(expected / file)) << file;
  }
}

// Hours of work survive the end of a process, and the result does not show that there was one.
TEST(QuantizeCalibrated, GoesOnBehindTheLastFinishedBlock) {
  for (const char* method : {"awq", "gptq", "ldlq"}) {
    const Scratch scratch;
    write_half(scratch / "source");
    Attempt whole{scratch / "whole", options_for(method)};
    whole.options.include = {"lm_head"};
    whole.source = scratch / "source";
    EXPECT_EQ(whole.go().resumed_blocks, 0);
    Attempt run{whole};
    run.target = scratch / "a";
    run.stop_at("model.layers.1.mlp");
    EXPECT_EQ(io::entries(scratch.path()), (std::vector<std::string>{"a.flute-unfinished", "source", "whole"}));
    run.stop_at("lm_head");
    EXPECT_TRUE(std::none_of(run.seen.begin(), run.seen.end(),
                             [](const std::string& what) { return what.starts_with("model.layers.0."); }));
    const CalibratedReport report = run.go();
    EXPECT_EQ(report.resumed_blocks, 2);
    EXPECT_EQ(report.blocks, 2);
    EXPECT_TRUE(std::none_of(run.seen.begin(), run.seen.end(),
                             [](const std::string& what) { return what.ends_with("_proj"); }));
    EXPECT_EQ(io::entries(scratch.path()), (std::vector<std::string>{"a", "source", "whole"}));
    expect_same_files(scratch / "a", scratch / "whole");
  }
}

// Blocks of two runs never meet in one checkpoint.
TEST(QuantizeCalibrated, FinishedBlocksOfAnotherRunAreRefused) {
  const Scratch scratch;
  Attempt run{scratch / "a"};
  run.stop_at("model.layers.2.");
  const std::string where = (scratch / "a").string() + ".flute-unfinished: ";
  const std::string advice = "; go on with what the folder was made with, or begin anew with --overwrite";

  Attempt bits = run;
  bits.options.bits = 2;
  bits.options.exclude = {"k_proj"};
  EXPECT_EQ(bits.error(), where +
                              "expected finished blocks of the same arguments, found others: bits (3, now 2), exclude "
                              "([], now [\"k_proj\"])" +
                              advice);
  Attempt text = run;
  text.text.back() = text.text.back() == 'x' ? 'y' : 'x';
  EXPECT_EQ(text.error(), where + "expected finished blocks of the same calibration text, found another's" + advice);

  // The same names, shapes and config.json; one weight of a finished block, or of the embedding, is another.
  for (const char* tensor : {"model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"}) {
    Attempt source = run;
    source.source = scratch / "other";
    std::filesystem::copy(run.source, source.source);
    const io::Checkpoint checkpoint = io::Checkpoint::open(run.source);
    const Path shard = checkpoint.file_of(tensor).filename();
    const std::span<const std::byte> data = checkpoint.at(tensor).data;
    std::string bytes = io::get(source.source / shard);
    const size_t at = bytes.find(std::string(reinterpret_cast<const char*>(data.data()), data.size()));
    ASSERT_NE(at, std::string::npos);
    // The embedding: all of its rows' first weights, since the text has few of its tokens.
    for (size_t i = at; i < at + data.size(); i += 512) bytes[i] = static_cast<char>(bytes[i] ^ 1);
    io::put(source.source / shard, bytes);
    EXPECT_EQ(source.error(), where + "expected finished blocks of the same source model, found another's" + advice);
    std::filesystem::remove_all(source.source);
  }

  // Refusing took nothing away.
  EXPECT_EQ(run.go().resumed_blocks, 2);
}

// Two runs at once would mix their files.
TEST(QuantizeCalibrated, TwoRunsDoNotShareATarget) {
  const Scratch scratch;
  const CalibrationText text{sample_text(), "text", 512};
  std::string message;
  const auto start = [&](const CalibrationProgress& progress) {
    quantize_calibrated(examples() / "docs-llama-small", scratch / "a", options_for("gptq"), text, nullptr, progress);
  };
  start([&](int64_t, int64_t, std::string_view) {
    if (message.empty()) message = error_of([&] { start({}); });
  });
  EXPECT_EQ(message, (scratch / "a").string() +
                         ".flute-unfinished: expected no other process at work on the same target, found one");
  EXPECT_EQ(io::entries(scratch.path()), std::vector<std::string>{"a"});
}

TEST(QuantizeCalibrated, OverwriteForgetsFinishedBlocksOfAnotherRun) {
  const Scratch scratch;
  Attempt whole{scratch / "whole"};
  whole.options.bits = 2;
  whole.go();
  Attempt run{scratch / "a"};
  run.stop_at("model.layers.2.");
  run.options.bits = 2;
  run.options.overwrite = true;
  run.stop_at("model.layers.1.");  // which leaves fewer blocks than were there
  EXPECT_EQ(run.go().resumed_blocks, 1);
  EXPECT_EQ(io::entries(scratch.path()), (std::vector<std::string>{"a", "whole"}));
  expect_same_files(scratch / "a", scratch / "whole");
}

TEST(QuantizeCalibrated, DamagedFinishedBlocksAreRefused) {
  for (const char* file : {"state.json", "block-0.safetensors", "block-1.safetensors", "activations-2.bin"}) {
    const Scratch scratch;
    Attempt run{scratch / "a"};
    run.stop_at("model.layers.2.");
    const Path path = scratch / "a.flute-unfinished" / file;
    std::string bytes = io::get(path);
    ASSERT_FALSE(bytes.empty()) << file;
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 0x15);
    io::put(path, bytes);
    EXPECT_NE(run.error().find("a.flute-unfinished"), std::string::npos) << run.error();
    io::put(path, bytes.substr(0, bytes.size() / 2));
    EXPECT_NE(run.error().find("a.flute-unfinished"), std::string::npos) << run.error();
    std::filesystem::remove(path);
    if (path.filename() == "state.json") continue;  // without it nothing was finished
    EXPECT_NE(run.error().find(file), std::string::npos) << run.error();
    run.options.overwrite = true;
    EXPECT_EQ(run.go().resumed_blocks, 0);
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
  EXPECT_EQ(error(sample_text(), options_for("rtn")), "method: expected awq, gptq or ldlq, found 'rtn'");
  io::QuantizeOptions clipped = options_for("ldlq");
  clipped.clip = 0.9F;
  EXPECT_EQ(error(sample_text(), clipped), "clip: expected 1, since ldlq searches for the scales, found 0.9");
  io::QuantizeOptions embedding = options_for("ldlq");
  embedding.include = {"embed_tokens"};
  EXPECT_EQ(error(sample_text(), embedding),
            "layer 'model.embed_tokens': expected a linear layer of a block or lm_head, which alone have inputs to "
            "calibrate with: leave it out with --exclude");
  EXPECT_EQ(error_of([&] { io::quantize_checkpoint(source, scratch / "a", options_for("gptq"), nullptr, {}); }),
            "method: expected rtn or mse, which need no calibration text, found 'gptq'");
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
