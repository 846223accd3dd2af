#include "io/checkpoint.hpp"

#include <cmath>
#include <functional>

#include "io/scratch.hpp"

namespace flute::io {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

TestTensor bytes_tensor(const std::string& name, const std::string& data) {
  return {{name, "U8", {static_cast<int64_t>(data.size())}}, data};
}

/// Two shards and their index: a in the first, b in the second.
class ShardedCheckpoint : public testing::Test {
 protected:
  ShardedCheckpoint() {
    write_tensors(folder / "model-00001-of-00002.safetensors", {bytes_tensor("a", "1")});
    write_tensors(folder / "model-00002-of-00002.safetensors", {bytes_tensor("b", "22")});
    put_index({{"a", "model-00001-of-00002.safetensors"}, {"b", "model-00002-of-00002.safetensors"}});
  }
  void put_index(const Json& weight_map) {
    put(folder / "model.safetensors.index.json",
        Json{{"metadata", {{"total_size", 3}}}, {"weight_map", weight_map}}.dump());
  }
  Scratch folder;
};

TEST_F(ShardedCheckpoint, FindsTensorsInTheirShards) {
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  EXPECT_EQ(checkpoint.at("b").data.size(), 2u);
  EXPECT_EQ(checkpoint.file_of("b").filename(), "model-00002-of-00002.safetensors");
  EXPECT_EQ(checkpoint.find("c"), nullptr);
  expect_error(ErrorCode::kInvalidFormat, {folder.path().string(), "'c'", "found none"}, [&] { checkpoint.at("c"); });
  EXPECT_FALSE(checkpoint.is_quantized());
}

TEST_F(ShardedCheckpoint, ASingleFileIsACheckpointToo) {
  EXPECT_EQ(Checkpoint::open(folder / "model-00001-of-00002.safetensors").at("a").data.size(), 1u);
}

TEST_F(ShardedCheckpoint, AMissingShardIsNamed) {
  fs::remove(folder / "model-00002-of-00002.safetensors");
  expect_error(ErrorCode::kIo, {"index.json", "'b'", "model-00002-of-00002.safetensors", "no such file"},
               [&] { Checkpoint::open(folder.path()); });
}

TEST_F(ShardedCheckpoint, AnIndexMayNotPointOutsideTheFolder) {
  const Scratch outside;
  write_tensors(outside / "x.safetensors", {bytes_tensor("a", "1")});
  const std::string beside = "../" + outside.path().filename().string() + "/x.safetensors";
  ASSERT_TRUE(fs::exists(folder / beside)) << "the file must be there, or its absence would be the reason";
  for (const std::string& name : {beside, "sub/../../" + beside.substr(3), (outside / "x.safetensors").string(),
                                  std::string(".."), std::string(""), std::string("a/"), std::string("a\0b", 3)}) {
    put_index({{"a", name}});
    expect_error(ErrorCode::kInvalidFormat, {"index.json", "'a'", "inside the folder"},
                 [&] { Checkpoint::open(folder.path()); });
  }
}

TEST_F(ShardedCheckpoint, LinksAreFollowedAsTheHubsCacheNeeds) {
  const Scratch blobs;
  fs::rename(folder / "model-00002-of-00002.safetensors", blobs / "blob");
  fs::create_symlink(blobs / "blob", folder / "model-00002-of-00002.safetensors");
  EXPECT_EQ(Checkpoint::open(folder.path()).at("b").data.size(), 2u);
}

TEST_F(ShardedCheckpoint, AnIndexThatDoesNotMatchItsShardsIsRefused) {
  put_index({{"a", "model-00002-of-00002.safetensors"}});
  expect_error(ErrorCode::kInvalidFormat, {"model-00002-of-00002.safetensors", "'a'", "found none"},
               [&] { Checkpoint::open(folder.path()); });
  fs::remove(folder / "model-00002-of-00002.safetensors");
  write_tensors(folder / "model-00002-of-00002.safetensors", {bytes_tensor("a", "1"), bytes_tensor("b", "2")});
  put_index({{"a", "model-00001-of-00002.safetensors"}, {"b", "model-00002-of-00002.safetensors"}});
  expect_error(ErrorCode::kInvalidFormat, {"'a'", "one shard only", "model-00001-of-00002.safetensors"},
               [&] { Checkpoint::open(folder.path()); });
  for (const char* bad : {"[]", "{}", R"({"weight_map": 3})", R"({"weight_map": {"a": 3}})"}) {
    put(folder / "model.safetensors.index.json", bad);
    expect_error(ErrorCode::kInvalidFormat, {"model.safetensors.index.json"}, [&] { Checkpoint::open(folder.path()); });
  }
}

TEST(Checkpoint, AFolderWithoutOneSaysWhatWasExpected) {
  const Scratch scratch;
  expect_error(ErrorCode::kIo, {scratch.path().string(), "model.safetensors.index.json"},
               [&] { Checkpoint::open(scratch.path()); });
  expect_error(ErrorCode::kIo, {"nowhere", "found nothing"}, [&] { Checkpoint::open(scratch / "nowhere"); });
}

/// One layer "m" of 3 x 64 at 4 bits, group 32, written by hand; each test spoils something.
class PackedLayer : public testing::Test {
 protected:
  PackedLayer() {
    config = {
        {"quantization_config",
         {{"quant_method", "flute"}, {"format_version", 1}, {"bits", 4}, {"group_size", 32}, {"codebook", "nf"}}}};
    std::vector<float> table(16);
    for (size_t i = 0; i < 16; ++i) table[i] = static_cast<float>(i) - 8;
    tensors["packed"] = {{"m.weight_packed", "I32", {3, 8}}, std::string(96, '\x21')};
    tensors["scale"] = matrix("m.weight_scale", 3, 2, {1, 2, 3, 4, 5, 6}, DType::kF16);
    tensors["codebook"] = matrix("m.weight_codebook", 1, 16, table, DType::kF32);
    tensors["codebook"].plan.shape = {16};
  }
  Checkpoint open() const {
    const fs::path path = scratch / fmt::format("{}.safetensors", ++count_);
    std::vector<TestTensor> list;
    for (const auto& [name, tensor] : tensors) list.push_back(tensor);
    write_tensors(path, list);
    std::vector<SafetensorsFile> shards;
    shards.push_back(SafetensorsFile::open(path));
    return Checkpoint::from_parts(scratch.path(), config, std::move(shards));
  }
  void expect_refused(const std::vector<std::string>& parts) const {
    expect_error(ErrorCode::kInvalidFormat, parts, [&] { open().packed_layer("m"); });
  }
  Scratch scratch;
  Json config;
  std::map<std::string, TestTensor> tensors;
  mutable int count_ = 0;
};

TEST_F(PackedLayer, DequantizesToTableTimesScale) {
  const Checkpoint checkpoint = open();
  ASSERT_EQ(checkpoint.quantized_layers(), std::vector<std::string>{"m"});
  EXPECT_EQ(checkpoint.layer_of("m.weight_scale"), "m");
  EXPECT_EQ(checkpoint.layer_of("x.weight_scale"), "");
  const PackedView view = checkpoint.packed_layer("m");
  EXPECT_EQ(view.n, 3);
  EXPECT_EQ(view.k, 64);
  std::vector<float> row(64);
  dequantize_rows(view, 1, 2, DType::kF32, row.data());
  // 0x21: codes 1, 2, 1, 2, ...; values -7 and -6; row 1 has scales 3 and 4.
  EXPECT_EQ(row[0], -21.0f);
  EXPECT_EQ(row[1], -18.0f);
  EXPECT_EQ(row[63], -24.0f);
}

TEST_F(PackedLayer, TablesForEachRowAndOffsetsAreUnderstood) {
  tensors["codebook"] = matrix("m.weight_codebook", 3, 16, std::vector<float>(48, 0.5f), DType::kF32);
  tensors["offset"] = matrix("m.weight_offset", 3, 2, std::vector<float>(6, 0.25f), DType::kF16);
  const Checkpoint checkpoint = open();
  EXPECT_TRUE(checkpoint.packed_layer("m").per_row_codebook());
  EXPECT_NE(checkpoint.packed_layer("m").offsets, nullptr);
}

TEST_F(PackedLayer, ALayerMayHaveSettingsOfItsOwn) {
  config["quantization_config"]["group_size"] = 128;
  config["quantization_config"]["layers"] = {{"m", {{"group_size", 32}, {"codebook", "file:t.json"}}}};
  const Checkpoint checkpoint = open();
  EXPECT_EQ(checkpoint.packed_layer("m").group_size, 32);
  EXPECT_EQ(checkpoint.packed_layer("m").bits, 4);
  EXPECT_EQ(checkpoint.quantization()->layer("m").codebook, "file:t.json");
}

TEST_F(PackedLayer, TensorsThatContradictTheConfigAreNamed) {
  const auto original_tensors = tensors;
  const auto original_config = config;
  // Not a reference: config is put back before each case.
  const auto settings = [&]() -> Json& { return config["quantization_config"]; };
  const std::vector<std::pair<std::function<void()>, std::vector<std::string>>> cases = {
      {[&] { settings()["bits"] = 3; }, {"'m.weight_packed'", "3 bits", "[3, 8]"}},
      {[&] { settings()["bits"] = 8; }, {"'m.weight_scale'", "[3, 1]", "found [3, 2]"}},
      {[&] { settings()["bits"] = 2; }, {"'m.weight_scale'", "[3, 4]", "found [3, 2]"}},
      {[&] { settings()["group_size"] = 64; }, {"'m.weight_scale'", "[3, 1]", "found [3, 2]"}},
      {[&] { tensors["packed"].plan.dtype = "F32"; }, {"'m.weight_packed'", "I32", "F32"}},
      {[&] { tensors["packed"].plan.shape = {24}; }, {"'m.weight_packed'", "[24]"}},
      {[&] {
         tensors["packed"] = {{"m.weight_packed", "I32", {3, 0}}, ""};
       },
       {"'m.weight_packed'", "[3, 0]"}},
      {[&] {
         tensors["packed"] = {{"m.weight_packed", "I32", {0, 8}}, ""};
       },
       {"'m.weight_packed'", "[0, 8]"}},
      {[&] { tensors.erase("scale"); }, {"'m.weight_scale'", "found none"}},
      {[&] { tensors.erase("codebook"); }, {"'m.weight_codebook'", "found none"}},
      {[&] { tensors["scale"].plan.dtype = "I16"; }, {"'m.weight_scale'", "I16"}},
      {[&] {
         tensors["codebook"].plan.shape = {4, 4};
       },
       {"'m.weight_codebook'", "[16] or [3, 16]", "[4, 4]"}},
      {[&] {
         tensors["offset"] = matrix("m.weight_offset", 3, 2, {1, 2, 3, 4, 5, 6}, DType::kF32);
       },
       {"'m.weight_offset'", "F16", "F32"}},
      {[&] {
         tensors["offset"] = matrix("m.weight_offset", 2, 2, {1, 2, 3, 4}, DType::kF16);
       },
       {"'m.weight_offset'", "[3, 2]", "[2, 2]"}},
      {[&] { store_from_f32(tensors["codebook"].data.data(), DType::kF32, 5, NAN); }, {"'m'", "code 5", "nan"}},
      {[&] { store_from_f32(tensors["scale"].data.data(), DType::kF16, 3, INFINITY); },
       {"'m'", "row 1, group 1", "inf"}},
      {[&] { settings()["bits"] = 0; }, {"config.json", "bits", "found 0"}},
      {[&] { settings()["bits"] = 18446744073709551615u; }, {"config.json", "bits", "1 to 8"}},
      {[&] { settings()["group_size"] = 48; }, {"config.json", "group_size", "found 48"}},
      {[&] { settings().erase("bits"); }, {"config.json", "'bits'", "found none"}},
      {[&] {
         settings()["layers"] = {{"m", {{"bits", "x"}}}};
       },
       {"config.json", "'m'", "bits"}},
      {[&] { settings()["format_version"] = 0; }, {"format_version", "found 0"}},
  };
  for (const auto& [spoil, parts] : cases) {
    tensors = original_tensors;
    config = original_config;
    spoil();
    expect_refused(parts);
  }
  tensors = original_tensors;
  config = original_config;
  settings()["format_version"] = 2;
  expect_error(ErrorCode::kUnsupported, {"format_version", "found 2", "newer"}, [&] { open(); });
}

}  // namespace
}  // namespace flute::io
