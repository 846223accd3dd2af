#include "io/checkpoint.hpp"
#include "io/model_config.hpp"
#include "io/scratch.hpp"

namespace flute::io {
namespace {

using Json = nlohmann::ordered_json;

std::filesystem::path example(const std::string& name) {
  return std::filesystem::path(FLUTE_SOURCE_DIR) / "examples" / name;
}

TEST(Json, KeepsOrderAndNumbersRefusesDuplicatesDepthAndRubbish) {
  const Json json = parse_json(R"({"z": 1e-05, "a": [18446744073709551615, -9223372036854775808, 0.1], "m": {}})", "x");
  EXPECT_EQ(json.dump(), R"({"z":1e-05,"a":[18446744073709551615,-9223372036854775808,0.1],"m":{}})");
  EXPECT_EQ(parse_json(std::string(100, '[') + std::string(100, ']'), "x").size(), 1u);
  expect_error(ErrorCode::kInvalidFormat, {"x: ", "100 levels"},
               [] { parse_json(std::string(101, '[') + std::string(101, ']'), "x"); });
  expect_error(ErrorCode::kInvalidFormat, {"x: ", "'k\\x0a'", "twice"},
               [] { parse_json(R"({"k\n":1,"k\n":2})", "x"); });
  EXPECT_NO_THROW(parse_json(R"([{"k":1},{"k":2}])", "x"));
  for (const char* bad : {"", " ", "{", "{}x", "[1,]", "{\"a\"}", "nul", "1e999", "\"\xff\"", "\"\n\"", "NaN"}) {
    expect_error(ErrorCode::kInvalidFormat, {"x: not valid JSON at byte"}, [&] { parse_json(bad, "x"); });
  }
}

TEST(Json, FilesAreLimitedAndNamed) {
  const Scratch scratch;
  put(scratch / "a.json", "[1, 2]");
  EXPECT_EQ(read_json_file(scratch / "a.json", 6).size(), 2u);
  expect_error(ErrorCode::kInvalidFormat, {"a.json", "at most 5 bytes"},
               [&] { read_json_file(scratch / "a.json", 5); });
  expect_error(ErrorCode::kIo, {"b.json", "No such file"}, [&] { read_json_file(scratch / "b.json"); });
}

TEST(Json, AVocabularyIsReadInLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 300000; ++i) text += fmt::format("{}\"token{}\":{}", i == 0 ? "" : ",", i, i);
  // A search for every key would take 4.5e10 comparisons: minutes, beyond the test's time limit.
  EXPECT_EQ(parse_json(text + "}", "x").size(), 300000u);
}

TEST(CodebookFile, HoldsExactlyItsValues) {
  const Codebook codebook = parse_codebook(R"({"bits": 2, "values": [-1, 0.1, 0, 1e-3]})", "x");
  EXPECT_EQ(codebook.bits, 2);
  EXPECT_EQ(codebook.values, (std::vector<float>{-1.0f, 0.1f, 0.0f, 1e-3f}));
}

TEST(CodebookFile, BadOnesAreRefusedWithTheirReason) {
  const std::vector<std::pair<const char*, std::vector<std::string>>> cases = {
      {"[]", {"bits", "values"}},
      {"{}", {"bits", "values"}},
      {R"({"bits": 3})", {"values"}},
      {R"({"bits": 0, "values": [1]})", {"bits", "1 to 8", "found 0"}},
      {R"({"bits": 9, "values": []})", {"bits", "1 to 8", "found 9"}},
      {R"({"bits": 2.0, "values": [1,2,3,4]})", {"bits", "2.0"}},
      {R"({"bits": 2, "values": []})", {"values", "expected 4 numbers", "found 0"}},
      {R"({"bits": 2, "values": [1,2,3]})", {"values", "expected 4 numbers", "found 3"}},
      {R"({"bits": 2, "values": 7})", {"values", "found 7"}},
      {R"({"bits": 1, "values": [1, "a"]})", {"values[1]", "finite"}},
      {R"({"bits": 1, "values": [1, null]})", {"values[1]", "null"}},
      {R"({"bits": 1, "values": [1e39, 1]})", {"values[0]", "finite", "1e+39"}},
      {R"({"bits": 1, "values": [1, 1e999]})", {"not valid JSON"}},
      {R"({"bits": 1, "values": [1, NaN]})", {"not valid JSON"}},
  };
  for (const auto& [text, parts] : cases) {
    expect_error(ErrorCode::kInvalidFormat, parts, [json = text] { parse_codebook(json, "table.json"); });
  }
}

TEST(ModelConfig, ReadsTheExampleCheckpoints) {
  const ModelConfig llama = read_model_config(example("docs-llama-small"));
  EXPECT_EQ(llama.architecture, Architecture::kLlama);
  EXPECT_EQ(llama.hidden_size, 256);
  EXPECT_EQ(llama.num_kv_heads, 2);
  EXPECT_EQ(llama.rope.theta, 500000.0);
  EXPECT_EQ(llama.rms_norm_eps, 1e-5);
  EXPECT_FALSE(llama.tie_word_embeddings);
  EXPECT_EQ(llama.eos_token_ids, std::vector<int32_t>{1});
  EXPECT_EQ(llama.bos_token_id, 0);
  EXPECT_EQ(llama.sliding_layers, std::vector<bool>(4, false));
  const ModelConfig gemma = read_model_config(example("docs-gemma2-small"));
  EXPECT_EQ(gemma.architecture, Architecture::kGemma2);
  EXPECT_TRUE(gemma.tie_word_embeddings);
  EXPECT_EQ(gemma.query_pre_attn_scalar, 64);
  EXPECT_EQ(gemma.attn_logit_softcapping, 50);
  EXPECT_EQ(gemma.final_logit_softcapping, 30);
  EXPECT_EQ(gemma.sliding_window, 128);
  EXPECT_EQ(gemma.sliding_layers, (std::vector<bool>{true, false, true, false}));
}

class EditedConfig : public testing::Test {
 protected:
  EditedConfig()
      : llama(read_json_file(example("docs-llama-small") / "config.json")),
        gemma(read_json_file(example("docs-gemma2-small") / "config.json")) {}
  static ModelConfig parse(const Json& json, const Json& generation = {}) {
    return parse_model_config(json, generation, "config.json");
  }
  Json llama, gemma;
};

TEST_F(EditedConfig, TheOlderStyleOfRopeSettings) {
  llama.erase("rope_parameters");
  EXPECT_EQ(parse(llama).rope.theta, 10000.0);
  llama["rope_theta"] = 500000;
  llama["rope_scaling"] = nullptr;
  EXPECT_EQ(parse(llama).rope.theta, 500000.0);
  EXPECT_EQ(parse(llama).rope.type, "default");
  llama["rope_scaling"] = {{"factor", 8.0},
                           {"low_freq_factor", 1.0},
                           {"high_freq_factor", 4.0},
                           {"original_max_position_embeddings", 8192},
                           {"rope_type", "llama3"}};
  const RopeConfig rope = parse(llama).rope;
  EXPECT_EQ(rope.type, "llama3");
  EXPECT_EQ(rope.theta, 500000.0);
  EXPECT_EQ(rope.factor, 8.0);
  EXPECT_EQ(rope.original_max_position_embeddings, 8192);
  llama["rope_scaling"] = {{"type", "linear"}, {"factor", 2}};
  EXPECT_EQ(parse(llama).rope.type, "linear");
  EXPECT_EQ(parse(llama).rope.factor, 2.0);
}

TEST_F(EditedConfig, RopeThatTheRuntimeCannotDoIsRefused) {
  llama["rope_parameters"] = {{"rope_type", "yarn"}, {"factor", 2}};
  expect_error(ErrorCode::kUnsupported, {"rope_parameters", "rope_type", "yarn"}, [&] { parse(llama); });
  llama["rope_parameters"] = {{"full_attention", {{"rope_theta", 1e6}}}, {"sliding_attention", {{"rope_theta", 1e4}}}};
  expect_error(ErrorCode::kUnsupported, {"full_attention"}, [&] { parse(llama); });
  llama["rope_parameters"] = {{"rope_type", "llama3"}, {"factor", 8.0}};
  expect_error(ErrorCode::kInvalidFormat, {"low_freq_factor", "found none"}, [&] { parse(llama); });
  llama["rope_parameters"] = {{"rope_theta", 1e4}, {"partial_rotary_factor", 0.5}};
  expect_error(ErrorCode::kUnsupported, {"partial_rotary_factor", "0.5"}, [&] { parse(llama); });
  llama["rope_parameters"] = 3;
  expect_error(ErrorCode::kInvalidFormat, {"rope_parameters", "object"}, [&] { parse(llama); });
}

TEST_F(EditedConfig, DefaultsAreThoseOfTheArchitecture) {
  llama.erase("head_dim");
  llama.erase("num_key_value_heads");
  EXPECT_EQ(parse(llama).head_dim, 64);
  EXPECT_EQ(parse(llama).num_kv_heads, 4);
  gemma.erase("layer_types");
  gemma.erase("tie_word_embeddings");
  gemma["attn_logit_softcapping"] = nullptr;
  EXPECT_EQ(parse(gemma).sliding_layers, (std::vector<bool>{true, false, true, false}));
  EXPECT_TRUE(parse(gemma).tie_word_embeddings);
  EXPECT_EQ(parse(gemma).attn_logit_softcapping, 0);
}

TEST_F(EditedConfig, TheGenerationConfigDecidesWhereToStop) {
  llama["eos_token_id"] = 5;
  EXPECT_EQ(parse(llama, {{"eos_token_id", {7, 8}}}).eos_token_ids, (std::vector<int32_t>{7, 8}));
  EXPECT_EQ(parse(llama, Json::object()).eos_token_ids, std::vector<int32_t>{5});
  llama["eos_token_id"] = {3, 4};
  EXPECT_EQ(parse(llama).eos_token_ids, (std::vector<int32_t>{3, 4}));
}

TEST_F(EditedConfig, MissingAbsurdAndUnknownValuesAreNamed) {
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}) {
    Json config = llama;
    config.erase(key);
    expect_error(ErrorCode::kInvalidFormat, {"config.json", key, "found none"}, [&] { parse(config); });
    for (const Json& absurd :
         {Json(0), Json(-1), Json(1e12), Json(1000000000000), Json("four"), Json(2.5), Json(18446744073709551615u)}) {
      config[key] = absurd;
      expect_error(ErrorCode::kInvalidFormat, {key, "an integer from", absurd.dump()}, [&] { parse(config); });
    }
  }
  const std::vector<std::tuple<const char*, Json, ErrorCode>> cases = {
      {"num_key_value_heads", 3, ErrorCode::kInvalidFormat},
      {"num_key_value_heads", 8, ErrorCode::kInvalidFormat},
      {"head_dim", 63, ErrorCode::kInvalidFormat},
      {"rms_norm_eps", 0, ErrorCode::kInvalidFormat},
      {"rms_norm_eps", "x", ErrorCode::kInvalidFormat},
      {"tie_word_embeddings", 1, ErrorCode::kInvalidFormat},
      {"hidden_act", "relu", ErrorCode::kUnsupported},
      {"architectures", {"MistralForCausalLM"}, ErrorCode::kUnsupported},
      {"architectures", Json::array(), ErrorCode::kInvalidFormat},
      {"eos_token_id", -4, ErrorCode::kInvalidFormat},
      {"bos_token_id", 1.5, ErrorCode::kInvalidFormat},
  };
  for (const auto& [key, value, code] : cases) {
    Json config = llama;
    config[key] = value;
    expect_error(code, {"config.json", key}, [&] { parse(config); });
  }
  gemma["layer_types"] = {"sliding_attention"};
  expect_error(ErrorCode::kInvalidFormat, {"layer_types", "4 names"}, [&] { parse(gemma); });
  gemma["layer_types"] = {"chunked_attention", "full_attention", "full_attention", "full_attention"};
  expect_error(ErrorCode::kUnsupported, {"layer_types", "chunked_attention"}, [&] { parse(gemma); });
  expect_error(ErrorCode::kInvalidFormat, {"expected an object"}, [&] { parse(Json::array()); });
}

}  // namespace
}  // namespace flute::io
