#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cmath>
#include <csignal>

#include "flute/threads.hpp"
#include "io/pipelines.hpp"
#include "io/scratch.hpp"

namespace flute::io {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kUp = "model.layers.0.mlp.up_proj";
constexpr const char* kDown = "model.layers.1.mlp.down_proj";

/// A checkpoint of two shards with everything a choice of layers meets, and files to be carried over.
class Quantize : public testing::Test {
 protected:
  Quantize() : random(fresh_random()) {
    up = random_values(random, 48 * 96);
    tensors[0] = {matrix("model.embed_tokens.weight", 40, 64, random_values(random, 40 * 64)),
                  matrix(std::string(kUp) + ".weight", 48, 96, up),
                  matrix("model.layers.0.self_attn.q_norm.weight", 32, 32, random_values(random, 32 * 32)),
                  matrix("model.layers.0.mlp.gate.weight", 4, 64, random_values(random, 4 * 64)),
                  matrix("model.layers.0.input_layernorm.weight", 1, 64, random_values(random, 64))};
    tensors[0].back().plan.shape = {64};
    tensors[1] = {matrix(std::string(kDown) + ".weight", 33, 64, random_values(random, 33 * 64), DType::kF32),
                  matrix("model.layers.1.bias", 1, 3, {1, 2, 3}),
                  matrix("lm_head.weight", 40, 64, random_values(random, 40 * 64))};
    config = Json::parse(
        R"({"z": 1, "rms_norm_eps": 1e-05, "tie_word_embeddings": false, "dtype": "bfloat16", "a": [1.0, null]})");
    write_source();
    put(source() / "tokenizer.json", "{\"tokens\": 1}");
    put(source() / "sub/notes.txt", "deep");
    put(source() / "pytorch_model.bin", "other weights");
    put(source() / ".git/config", "history");
    fs::create_symlink(source() / "sub/notes.txt", source() / "README.md");
  }
  void write_source() {
    Json map;
    for (size_t i = 0; i < 2; ++i) {
      const std::string name = fmt::format("model-0000{}-of-00002.safetensors", i + 1);
      fs::remove(source() / name);
      fs::create_directories(source());
      write_tensors(source() / name, tensors[i]);
      for (const TestTensor& tensor : tensors[i]) map[tensor.plan.name] = name;
    }
    put(source() / "model.safetensors.index.json",
        Json{{"metadata", {{"total_parameters", 7}, {"total_size", 1}}}, {"weight_map", map}}.dump());
    put(source() / "config.json", config.dump(2));
  }
  fs::path source() const { return scratch / "source"; }
  fs::path target() const { return scratch / "target"; }
  CheckpointReport run(const Progress& progress = {}) {
    return quantize_checkpoint(source(), target(), options, &threads, progress);
  }
  /// The run must fail so, and leave nothing but the source.
  void expect_failure(ErrorCode code, const std::vector<std::string>& parts) {
    expect_error(code, parts, [&] { run(); });
    EXPECT_EQ(entries(scratch.path()), std::vector<std::string>{"source"});
  }
  std::vector<std::string> quantized() const { return Checkpoint::open(target()).quantized_layers(); }

  std::mt19937_64 random;
  Scratch scratch;
  std::array<std::vector<TestTensor>, 2> tensors;
  std::vector<float> up;
  Json config;
  QuantizeOptions options;
  ThreadPool threads{2};
};

TEST_F(Quantize, TheLinearLayersOfTheBlocksAndNothingElse) {
  const CheckpointReport planned = plan_quantization(source(), options);
  EXPECT_EQ(entries(scratch.path()), std::vector<std::string>{"source"});
  const CheckpointReport report = run();
  EXPECT_EQ(quantized(), (std::vector<std::string>{kUp, kDown}));
  EXPECT_EQ(entries(scratch.path()), (std::vector<std::string>{"source", "target"}));
  const Checkpoint checkpoint = Checkpoint::open(target());

  // What stayed, stayed byte for byte.
  const Checkpoint original = Checkpoint::open(source());
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight", "model.layers.1.bias",
                           "model.layers.0.input_layernorm.weight", "model.layers.0.mlp.gate.weight"}) {
    const auto a = original.at(name).data;
    const auto b = checkpoint.at(name).data;
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << name;
    EXPECT_EQ(checkpoint.file_of(name).filename(), original.file_of(name).filename());
  }
  EXPECT_EQ(checkpoint.find(std::string(kUp) + ".weight"), nullptr);

  // Plan, result and inspection tell the same story.
  const CheckpointReport inspected = inspect_checkpoint(target());
  EXPECT_EQ(planned.bytes, report.bytes);
  EXPECT_EQ(inspected.bytes, report.bytes);
  EXPECT_EQ(inspected.elements, report.elements);
  EXPECT_EQ(inspected.layers.size(), report.layers.size());
  const Json index = read_json_file(target() / "model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], report.bytes);
  EXPECT_EQ(index["metadata"]["total_parameters"], 7);
}

TEST_F(Quantize, CodesAndScalesAreThoseOfTheLibrary) {
  run();
  const Checkpoint checkpoint = Checkpoint::open(target());
  const PackedView stored = checkpoint.packed_layer(kUp);
  const TestTensor weight = tensors[0][1];
  const PackedMatrix expected = quantize_rtn(weight.data.data(), DType::kBF16, 48, 96, nf_codebook(4), RtnOptions{});
  EXPECT_TRUE(std::equal(stored.codes.begin(), stored.codes.end(), expected.codes.begin(), expected.codes.end()));
  EXPECT_EQ(std::memcmp(stored.scales, expected.scales.data(), expected.scales.size()), 0);
}

TEST_F(Quantize, ConfigKeepsEveryOtherKeyInItsOrder) {
  run();
  Json written = read_json_file(target() / "config.json");
  const Json settings = written["quantization_config"];
  EXPECT_EQ(settings["quant_method"], "flute");
  EXPECT_EQ(settings["format_version"], 1);
  EXPECT_EQ(settings["bits"], 4);
  EXPECT_EQ(settings["group_size"], 64);
  EXPECT_EQ(settings["scale_dtype"], "fp16");
  // What a loader must leave alone: linear-like layers that stayed, not the embedding.
  const Json stayed = settings["modules_to_not_convert"];
  EXPECT_NE(std::find(stayed.begin(), stayed.end(), "lm_head"), stayed.end());
  EXPECT_EQ(std::find(stayed.begin(), stayed.end(), "model.embed_tokens"), stayed.end());
  written.erase("quantization_config");
  EXPECT_EQ(written.dump(), config.dump());
}

TEST_F(Quantize, FilesThatAreNotWeightsAreCarriedOver) {
  run();
  EXPECT_EQ(get(target() / "tokenizer.json"), "{\"tokens\": 1}");
  EXPECT_EQ(get(target() / "sub/notes.txt"), "deep");
  EXPECT_EQ(get(target() / "README.md"), "deep");
  EXPECT_FALSE(fs::is_symlink(target() / "README.md"));
  EXPECT_FALSE(fs::exists(target() / "pytorch_model.bin"));
  EXPECT_FALSE(fs::exists(target() / ".git"));
}

TEST_F(Quantize, IncludeExcludeAndLayerBitsChoose) {
  options.include = {"^lm_head$"};
  options.exclude = {"down_proj"};
  options.layer_bits = {{"up", 3}, {"up_proj", 2}};
  options.codebook = "int";
  run();
  EXPECT_EQ(quantized(), (std::vector<std::string>{kUp, "lm_head"}));
  const Checkpoint checkpoint = Checkpoint::open(target());
  EXPECT_EQ(checkpoint.packed_layer(kUp).bits, 3) << "the first match wins";
  EXPECT_EQ(checkpoint.packed_layer("lm_head").bits, 4);
}

TEST_F(Quantize, ATiedHeadGetsAMatrixOfItsOwn) {
  tensors[1].pop_back();
  config["tie_word_embeddings"] = true;
  write_source();
  options.include = {"lm_head"};
  run();
  const Checkpoint checkpoint = Checkpoint::open(target());
  EXPECT_EQ(checkpoint.config()["tie_word_embeddings"], false);
  EXPECT_EQ(checkpoint.packed_layer("lm_head").n, 40);
  const TestTensor& embedding = tensors[0][0];
  const auto kept = checkpoint.at("model.embed_tokens.weight").data;
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(kept.data()), kept.size()), embedding.data);
  const auto report = inspect_checkpoint(target(), source(), &threads);
  const auto head =
      std::find_if(report.layers.begin(), report.layers.end(), [](const auto& l) { return l.name == "lm_head"; });
  EXPECT_LT(head->relative_error.value(), 0.15) << "compared with the embedding it was tied to";
  // Left tied, it must not be converted by a loader either.
  options.include.clear();
  options.overwrite = true;
  run();
  const Json stayed = Checkpoint::open(target()).config()["quantization_config"]["modules_to_not_convert"];
  EXPECT_NE(std::find(stayed.begin(), stayed.end(), "lm_head"), stayed.end());
}

TEST_F(Quantize, TheNumberOfThreadsChangesNothing) {
  quantize_checkpoint(source(), scratch / "one", options, nullptr, {});
  run();
  for (const char* name : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"}) {
    EXPECT_EQ(get(scratch / "one" / name), get(target() / name)) << name;
  }
}

TEST_F(Quantize, TablesComeFromFilesAndFromTheMatrix) {
  put(scratch / "source/table.json", R"({"bits": 2, "values": [-1, -0.25, 0.25, 1]})");
  options.codebook = source() / "table.json";
  options.bits = 2;
  run();
  {
    const Checkpoint checkpoint = Checkpoint::open(target());
    const auto values = checkpoint.packed_layer(kUp).codebook;
    EXPECT_EQ(std::vector<float>(values.begin(), values.end()), (std::vector<float>{-1, -0.25, 0.25, 1}));
    EXPECT_EQ(checkpoint.quantization()->common.codebook, "file:table.json");
  }
  options.overwrite = true;
  options.layer_bits = {{"up", 3}};
  expect_error(ErrorCode::kInvalidArgument, {"'up'", "expected 2 bits", "table.json", "found 3"}, [&] { run(); });
  options.codebook = "kmeans";
  run();
  EXPECT_EQ(Checkpoint::open(target()).packed_layer(kUp).codebook.size(), 8u);
}

TEST_F(Quantize, BadOptionsAreNamed) {
  const QuantizeOptions good = options;
  const auto expect = [&](const std::vector<std::string>& parts) {
    expect_failure(ErrorCode::kInvalidArgument, parts);
    options = good;
  };
  options.bits = 9;
  expect({"bits", "9"});
  options.group_size = 48;
  expect({"group size", "48"});
  options.codebook = "nf5";
  expect({"codebook", "'nf5'", "kmeans"});
  options.method = "gptq";
  expect({"method", "'gptq'"});
  options.clip = 0;
  expect({"clip", "0"});
  options.include = {"("};
  expect({"--include '('", "regular expression"});
  options.include = {"no_such_layer"};
  expect({"--include 'no_such_layer'", "found none"});
  options.exclude = {"no_such_layer"};
  expect({"--exclude 'no_such_layer'", "found none"});
  options.layer_bits = {{"lm_head", 3}};
  expect({"--layer-bits 'lm_head'", "found none"});
  put(source() / "zero.json", R"({"bits": 4, "values": [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]})");
  options.codebook = source() / "zero.json";
  expect({"zero.json", "other than 0"});
}

TEST_F(Quantize, AWeightThatIsNotFiniteIsNamedWithItsPlace) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    up[41 * 96 + 17] = bad;
    up[45 * 96] = bad;
    tensors[0][1] = matrix(std::string(kUp) + ".weight", 48, 96, up);
    write_source();
    for (const char* codebook : {"nf", "kmeans"}) {
      options.codebook = codebook;
      expect_failure(ErrorCode::kInvalidFormat, {"model-00001-of-00002.safetensors", kUp, "row 41", "17", "finite"});
    }
  }
}

TEST_F(Quantize, RowsOfAnErrorCountFromTheMatrixNotFromTheChunk) {
  const int64_t k = 8192;
  const int64_t n = 1100;  // 8192 bf16 a row: the chunk of 8 MiB ends at row 512
  std::vector<float> values(static_cast<size_t>(n * k), 0.5f);
  values[static_cast<size_t>(700 * k + 8000)] = NAN;
  tensors[0][1] = matrix(std::string(kUp) + ".weight", n, k, values);
  write_source();
  expect_failure(ErrorCode::kInvalidFormat, {kUp, "row 700, column 8000"});
  values[static_cast<size_t>(700 * k + 8000)] = 1e30f;
  tensors[0][1] = matrix(std::string(kUp) + ".weight", n, k, values);
  write_source();
  expect_failure(ErrorCode::kInvalidFormat, {kUp, "row 700, group 125", "fp16"});
}

TEST_F(Quantize, AWidthThatIsNoMultipleOf32IsNamed) {
  tensors[1][0] = matrix(std::string(kDown) + ".weight", 64, 33, std::vector<float>(33 * 64, 1.0f));
  write_source();
  expect_failure(ErrorCode::kInvalidFormat,
                 {"model-00002-of-00002.safetensors", kDown, "multiple of 32", "[64, 33]", "--exclude"});
  options.exclude = {"down_proj"};
  run();
  EXPECT_EQ(quantized(), std::vector<std::string>{kUp});
}

TEST_F(Quantize, AMatrixThatIsNotFloatIsNamed) {
  tensors[1][0] = {{std::string(kDown) + ".weight", "I8", {2, 32}}, std::string(64, '\1')};
  write_source();
  expect_failure(ErrorCode::kInvalidFormat, {kDown, "F32, F16 or BF16", "I8"});
}

TEST_F(Quantize, WhatIsQuantizedAlreadyIsRefused) {
  run();
  expect_error(ErrorCode::kInvalidArgument, {"not quantized", "flute"},
               [&] { quantize_checkpoint(target(), scratch / "again", options, nullptr, {}); });
  config["quantization_config"] = {{"quant_method", "fp8"}};
  write_source();
  expect_error(ErrorCode::kUnsupported, {"quantization_config", "fp8"},
               [&] { quantize_checkpoint(source(), scratch / "again", options, nullptr, {}); });
}

TEST_F(Quantize, SourceAndTargetMustBeApart) {
  fs::create_symlink(source(), scratch / "link");
  options.overwrite = true;
  for (const fs::path& path : {source(), scratch / "link", scratch / "source/../source/", source() / "sub/inner",
                               scratch.path(), scratch / "link/inner"}) {
    expect_error(ErrorCode::kInvalidArgument, {"apart from the source"},
                 [&] { quantize_checkpoint(source(), path, options, nullptr, {}); });
  }
  EXPECT_EQ(entries(scratch.path()), (std::vector<std::string>{"link", "source"}));
}

TEST_F(Quantize, ATargetIsReplacedOnlyWhenAskedAndOnlyACheckpoint) {
  put(target() / "config.json", "old");
  put(target() / "left-over.txt", "old");
  expect_error(ErrorCode::kInvalidArgument, {target().string(), "--overwrite"}, [&] { run(); });
  EXPECT_EQ(get(target() / "config.json"), "old");
  options.overwrite = true;
  run();
  EXPECT_EQ(quantized().size(), 2u);
  EXPECT_FALSE(fs::exists(target() / "left-over.txt"));
  EXPECT_EQ(entries(scratch.path()), (std::vector<std::string>{"source", "target"}));
  put(scratch / "home/diary.txt", "precious");
  expect_error(ErrorCode::kInvalidArgument, {"home", "without one"},
               [&] { quantize_checkpoint(source(), scratch / "home", options, nullptr, {}); });
  put(scratch / "file", "precious");
  expect_error(ErrorCode::kInvalidArgument, {"expected a folder"},
               [&] { quantize_checkpoint(source(), scratch / "file", options, nullptr, {}); });
  EXPECT_EQ(get(scratch / "home/diary.txt"), "precious");
}

TEST_F(Quantize, AFailureLeavesTheFormerTarget) {
  put(target() / "config.json", "old");
  options.overwrite = true;
  up[0] = NAN;
  tensors[0][1] = matrix(std::string(kUp) + ".weight", 48, 96, up);
  write_source();
  EXPECT_THROW(run(), Error);
  EXPECT_EQ(get(target() / "config.json"), "old");
  EXPECT_EQ(entries(scratch.path()), (std::vector<std::string>{"source", "target"}));
}

TEST_F(Quantize, CancellingLeavesNothing) {
  struct Cancelled {};
  int calls = 0;
  EXPECT_THROW(run([&](int64_t, int64_t, std::string_view) {
                 if (++calls == 3) throw Cancelled();
               }),
               Cancelled);
  EXPECT_EQ(entries(scratch.path()), std::vector<std::string>{"source"});
  // Parents made for the target go with it.
  EXPECT_THROW(quantize_checkpoint(source(), scratch / "new/deep/target", options, nullptr,
                                   [](int64_t, int64_t, std::string_view) { throw Cancelled(); }),
               Cancelled);
  EXPECT_EQ(entries(scratch.path()), std::vector<std::string>{"source"});
}

TEST_F(Quantize, ProgressReachesItsTotal) {
  int64_t last = 0;
  int64_t whole = -1;
  run([&](int64_t done, int64_t total, std::string_view) {
    EXPECT_GE(done, last);
    last = done;
    whole = total;
  });
  EXPECT_EQ(last, whole);
}

TEST_F(Quantize, KilledInTheMiddleItLeavesNoTargetAndTheNextRunClearsUp) {
  int pipes[2];
  ASSERT_EQ(::pipe(pipes), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    int calls = 0;
    try {
      quantize_checkpoint(source(), target(), options, nullptr, [&](int64_t, int64_t, std::string_view) {
        if (++calls < 4) return;
        [[maybe_unused]] const auto written = ::write(pipes[1], "x", 1);
        for (;;) ::pause();
      });
    } catch (...) {
    }
    ::_exit(1);
  }
  char byte = 0;
  ASSERT_EQ(::read(pipes[0], &byte, 1), 1);
  EXPECT_EQ(entries(scratch.path()).size(), 2u) << "the source and a temporary folder";
  {
    // Another run to the same target must leave a living process's folder alone.
    struct Cancelled {};
    EXPECT_THROW(run([](int64_t, int64_t, std::string_view) { throw Cancelled(); }), Cancelled);
    EXPECT_EQ(entries(scratch.path()).size(), 2u);
  }
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  ::close(pipes[0]);
  ::close(pipes[1]);
  EXPECT_FALSE(fs::exists(target()));
  put(scratch / "target.flute-tmp-notes/mine.txt", "not a temporary folder");
  run();
  EXPECT_EQ(quantized().size(), 2u);
  EXPECT_EQ(entries(scratch.path()), (std::vector<std::string>{"source", "target", "target.flute-tmp-notes"}));
}

TEST_F(Quantize, AFileSizeLimitIsAnErrorAndLeavesNothing) {
  rlimit former{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &former), 0);
  const auto former_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = former;
  small.rlim_cur = 4096;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  expect_failure(ErrorCode::kIo, {"model-00001-of-00002.safetensors", "File too large"});
  ::setrlimit(RLIMIT_FSIZE, &former);
  std::signal(SIGXFSZ, former_handler);
}

TEST_F(Quantize, AFullDiskIsAnErrorAndLeavesNothing) {
  const fs::path disk = scratch / "disk";
  fs::create_directories(disk);
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=16k") != 0) GTEST_SKIP() << "mounting a tmpfs needs root";
  expect_error(ErrorCode::kIo, {"model-0000", "No space left on device"},
               [&] { quantize_checkpoint(source(), disk / "target", options, nullptr, {}); });
  EXPECT_TRUE(entries(disk).empty());
  ::umount(disk.c_str());
}

TEST_F(Quantize, AReadOnlyTargetIsAnError) {
  const fs::path disk = scratch / "disk";
  fs::create_directories(disk);
  const bool mounted = ::mount("tmpfs", disk.c_str(), "tmpfs", MS_RDONLY, "") == 0;
  if (!mounted) fs::permissions(disk, fs::perms::owner_read | fs::perms::owner_exec);
  expect_error(ErrorCode::kIo, {disk.string(), mounted ? "Read-only file system" : "Permission denied"},
               [&] { quantize_checkpoint(source(), disk / "target", options, nullptr, {}); });
  if (mounted) ::umount(disk.c_str());
}

TEST_F(Quantize, ASingleFileWithoutConfigWorksToo) {
  write_tensors(scratch / "lone.safetensors", tensors[0]);
  quantize_checkpoint(scratch / "lone.safetensors", target(), options, nullptr, {});
  EXPECT_EQ(quantized(), std::vector<std::string>{kUp});
  EXPECT_EQ(entries(target()), (std::vector<std::string>{"config.json", "model.safetensors"}));
}

TEST_F(Quantize, DequantizingGivesAPlainCheckpointOfTheSameValues) {
  run();
  const Checkpoint packed = Checkpoint::open(target());
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const fs::path plain_path = scratch / std::string(dtype_name(dtype));
    dequantize_checkpoint(target(), plain_path, dtype, false, &threads, {});
    const Checkpoint plain = Checkpoint::open(plain_path);
    EXPECT_FALSE(plain.is_quantized());
    EXPECT_FALSE(plain.config().contains("quantization_config"));
    EXPECT_EQ(plain.config()["rms_norm_eps"], 1e-5);
    const char* names[] = {"float32", "float16", "bfloat16"};
    EXPECT_EQ(plain.config()["dtype"], names[static_cast<int>(dtype)]);
    for (const char* name : {kUp, kDown}) {
      const PackedView view = packed.packed_layer(name);
      std::vector<std::byte> expected(static_cast<size_t>(view.n * view.k) * dtype_size(dtype));
      dequantize_rows(view, 0, view.n, dtype, expected.data());
      const TensorView& found = plain.at(std::string(name) + ".weight");
      EXPECT_EQ(found.shape, (std::vector<int64_t>{view.n, view.k}));
      EXPECT_TRUE(std::equal(found.data.begin(), found.data.end(), expected.begin(), expected.end())) << name;
    }
    // The others are converted, value by value.
    const TensorView& bias = plain.at("model.layers.1.bias");
    EXPECT_EQ(bias.dtype, safetensors_name(dtype));
    EXPECT_EQ(load_as_f32(bias.data.data(), dtype, 2), 3.0f);
    EXPECT_EQ(get(plain_path / "tokenizer.json"), "{\"tokens\": 1}");
  }
  expect_error(ErrorCode::kInvalidArgument, {"flute's format"},
               [&] { dequantize_checkpoint(source(), scratch / "x", DType::kF32, false, nullptr, {}); });
}

TEST_F(Quantize, DequantizingToFp16RefusesWhatDoesNotFit) {
  tensors[1][1] = matrix("model.layers.1.bias", 1, 3, {1, 1e6f, 3});
  write_source();
  run();
  expect_error(ErrorCode::kInvalidArgument, {"model.layers.1.bias", "65504"},
               [&] { dequantize_checkpoint(target(), scratch / "half", DType::kF16, false, nullptr, {}); });
  EXPECT_EQ(entries(scratch.path()), (std::vector<std::string>{"source", "target"}));
  EXPECT_NO_THROW(dequantize_checkpoint(target(), scratch / "full", DType::kF32, false, nullptr, {}));
}

TEST_F(Quantize, InspectGivesTheErrorAgainstTheOriginal) {
  run();
  const auto report = inspect_checkpoint(target(), source(), &threads);
  const auto alone = inspect_checkpoint(target(), source(), nullptr);
  const Checkpoint checkpoint = Checkpoint::open(target());
  for (size_t i = 0; i < report.layers.size(); ++i) {
    const LayerReport& layer = report.layers[i];
    EXPECT_EQ(layer.relative_error.has_value(), layer.quantized) << layer.name;
    EXPECT_EQ(layer.relative_error, alone.layers[i].relative_error) << "depends on the threads";
    if (layer.name != kUp) continue;
    EXPECT_EQ(layer.codebook, "nf");
    EXPECT_EQ(layer.bytes, 48 * 96 / 2 + 48 * 2 * 2 + 16 * 4);
    std::vector<float> values(48 * 96);
    dequantize_rows(checkpoint.packed_layer(kUp), 0, 48, DType::kF32, values.data());
    double difference = 0;
    double norm = 0;
    for (size_t j = 0; j < values.size(); ++j) {
      const double w = load_as_f32(tensors[0][1].data.data(), DType::kBF16, j);
      difference += (w - values[j]) * (w - values[j]);
      norm += w * w;
    }
    EXPECT_NEAR(layer.relative_error.value(), std::sqrt(difference / norm), 1e-12);
  }
  tensors[0][1] = matrix(std::string(kUp) + ".weight", 96, 48, up);
  write_source();
  expect_error(ErrorCode::kInvalidFormat, {kUp, "[48, 96]", "[96, 48]"},
               [&] { inspect_checkpoint(target(), source()); });
}

TEST_F(Quantize, InspectTakesAnyCheckpoint) {
  const auto report = inspect_checkpoint(source());
  EXPECT_EQ(report.layers.size(), tensors[0].size() + tensors[1].size());
  EXPECT_EQ(report.quantized_bits_per_weight, 0);
  const auto same = inspect_checkpoint(source(), source());
  for (const LayerReport& layer : same.layers) {
    EXPECT_EQ(layer.relative_error, layer.n > 0 ? std::optional<double>(0) : std::nullopt) << layer.name;
  }
}

}  // namespace
}  // namespace flute::io
