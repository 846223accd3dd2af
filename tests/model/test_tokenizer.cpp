#include "model/tokenizer.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "flute/error.hpp"
#include "io/json.hpp"
#include "model/chat.hpp"
#include "model/unicode.hpp"

namespace flute::model {
namespace {

using Ids = std::vector<int32_t>;
using Json = nlohmann::ordered_json;

std::filesystem::path example(const std::string& name) {
  return std::filesystem::path(FLUTE_SOURCE_DIR) / "examples" / name;
}

Tokenizer parse(const std::string& text) { return Tokenizer::from_json(io::parse_json(text, "t.json"), "t.json"); }

/// A vocabulary of single letters, `<s>` and what `merges` makes of them.
std::string tiny(const std::string& merges, const std::string& more_tokens, const std::string& rest) {
  std::string vocabulary = R"("<s>":0)";
  for (char c = 'a'; c <= 'z'; ++c) vocabulary += fmt::format(",\"{}\":{}", c, c - 'a' + 1);
  return R"({"model":{"type":"BPE","vocab":{)" + vocabulary + more_tokens + R"(},"merges":[)" + merges + "]}" + rest +
         "}";
}

class Examples : public testing::TestWithParam<std::string> {};

TEST_P(Examples, EncodesAndDecodesAsTheReferenceDid) {
  const Tokenizer tokenizer = Tokenizer::load(example(GetParam()) / "tokenizer.json");
  const Json reference = io::read_json_file(example(GetParam()) / "reference.json");
  ASSERT_FALSE(reference["samples"].empty());
  for (const Json& sample : reference["samples"]) {
    EXPECT_EQ(tokenizer.encode(sample["prompt"].get<std::string>()), sample["input_ids"].get<Ids>());
    EXPECT_EQ(tokenizer.decode(sample["greedy_ids"].get<Ids>()), sample["greedy_text"].get<std::string>());
  }
}

TEST_P(Examples, StreamingGivesWhatDecodingGivesInWholeCharacters) {
  const Tokenizer tokenizer = Tokenizer::load(example(GetParam()) / "tokenizer.json");
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  // Ids below 300 are mostly single bytes: characters in the making, and ones that never will be.
  std::uniform_int_distribution<int32_t> id(-1, 300), length(0, 60);
  for (int round = 0; round < 2000; ++round) {
    Ids ids(static_cast<size_t>(length(random)));
    for (int32_t& value : ids) value = id(random);
    for (const bool skip : {true, false}) {
      StreamDecoder stream(tokenizer, skip);
      for (int text = 0; text < 2; ++text) {  // the second time the decoder has been used before
        std::string streamed;
        for (const int32_t value : ids) {
          const std::string part = stream.push(value);
          ASSERT_TRUE(is_well_formed(part));
          streamed += part;
        }
        ASSERT_EQ(streamed + stream.finish(), tokenizer.decode(ids, skip));
      }
    }
  }
}

TEST_P(Examples, IllFormedBytesCountAsReplacementCharacters) {
  const Tokenizer tokenizer = Tokenizer::load(example(GetParam()) / "tokenizer.json");
  EXPECT_EQ(tokenizer.encode("a\xC3(\xE2\x82z\xFF\xF0\x9F"), tokenizer.encode("a\uFFFD(\uFFFDz\uFFFD\uFFFD"));
}

TEST_P(Examples, AMillionEqualCharactersTakeNoQuadraticTimeAndNoStack) {
  const Tokenizer tokenizer = Tokenizer::load(example(GetParam()) / "tokenizer.json");
  for (const std::string_view unit : {" ", "a", "\n", "!", "7", "\u00e9", "\u4e2d"}) {
    std::string text;
    for (int i = 0; i < 1'000'000; ++i) text += unit;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST_P(Examples, AModelThatWasNotTrainedToChatSaysSo) {
  const Tokenizer tokenizer = Tokenizer::load(example(GetParam()) / "tokenizer.json");
  for (const io::Architecture architecture : {io::Architecture::kLlama, io::Architecture::kGemma2}) {
    try {
      chat_prompt_ids(architecture, tokenizer, "Hello");
      FAIL() << "expected an error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
      EXPECT_NE(std::string(error.what()).find("not a chat model"), std::string::npos) << error.what();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, Examples, testing::Values("docs-llama-small", "docs-gemma2-small"), [](const auto& each) {
  return each.param == "docs-llama-small" ? std::string("Llama") : std::string("Gemma2");
});

TEST(Tokenizer, MergesTheLowestRankFirstAndOfEqualOnesTheLeftmost) {
  const std::string tokens = R"(,"bc":30,"ab":31,"abc":32,"aa":33,"aaaa":34)";
  const std::string merges = R"(["b","c"],["a","b"],["ab","c"],["a","a"],["aa","aa"])";
  const Tokenizer tokenizer = parse(tiny(merges, tokens, ""));
  EXPECT_EQ(tokenizer.encode("abc"), (Ids{1, 30}));  // b c is learnt before a b
  EXPECT_EQ(tokenizer.encode("abd"), (Ids{31, 4}));
  EXPECT_EQ(tokenizer.encode("aaaaaaa"), (Ids{34, 33, 1}));
  EXPECT_EQ(tokenizer.vocab_size(), 35);
}

TEST(Tokenizer, MergesAreReadInBothSpellings) {
  const std::string tokens = R"(,"ab":30,"abc":31)";
  for (const std::string merges : {R"(["a","b"],["ab","c"])", R"("a b","ab c")"}) {
    EXPECT_EQ(parse(tiny(merges, tokens, "")).encode("xabcab"), (Ids{24, 31, 30})) << merges;
  }
}

TEST(Tokenizer, AddedTokensAreCutOutLongestFirst) {
  const Tokenizer tokenizer = parse(tiny("", "", R"(,"added_tokens":[
    {"id":27,"content":"<x","special":true},{"id":28,"content":"<x>","special":true},
    {"id":29,"content":"word","single_word":true},{"id":30,"content":"#","lstrip":true,"rstrip":true}])"));
  EXPECT_EQ(tokenizer.encode("a<x>b<xc"), (Ids{1, 28, 2, 27, 3}));
  EXPECT_EQ(tokenizer.encode("word"), (Ids{29}));
  EXPECT_EQ(tokenizer.encode("words"), (Ids{23, 15, 18, 4, 19}));
  EXPECT_EQ(tokenizer.encode("a \u2003# \n b"), (Ids{1, 30, 2}));  // white space is not in this vocabulary: dropped
  EXPECT_TRUE(tokenizer.is_special(28));
  EXPECT_FALSE(tokenizer.is_special(29));
  EXPECT_EQ(tokenizer.token_to_id("<x>"), 28);
  EXPECT_EQ(tokenizer.token_to_id("<y>"), -1);
  EXPECT_EQ(tokenizer.decode(Ids{1, 28, 2}), "a b");  // no decoder: tokens with a space between them
  EXPECT_EQ(tokenizer.decode(Ids{1, 28, 2}, false), "a <x> b");
}

TEST(Tokenizer, TheBeginTokenComesFromThePostProcessorOnly) {
  const Tokenizer tokenizer = parse(tiny("", "", R"(,"post_processor":{"type":"TemplateProcessing",
    "single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],
    "special_tokens":{"<s>":{"id":"<s>","ids":[0],"tokens":["<s>"]}}})"));
  EXPECT_EQ(tokenizer.encode("ab"), (Ids{0, 1, 2}));
  EXPECT_EQ(tokenizer.encode("ab", false), (Ids{1, 2}));
  EXPECT_EQ(tokenizer.encode(""), (Ids{0}));
}

TEST(Tokenizer, ARunOfByteTokensIsTextOnlyAsAWhole) {
  const Tokenizer tokenizer = parse(tiny("", R"(,"<0xC3>":30,"<0xA9>":31)",
                                         R"(,"decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},
                                            {"type":"Fuse"}]})"));
  EXPECT_EQ(tokenizer.decode(Ids{1, 30, 31, 2}), "a\u00e9b");
  EXPECT_EQ(tokenizer.decode(Ids{30, 31, 31}), "\uFFFD\uFFFD\uFFFD");
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.push(30), "");
  EXPECT_EQ(stream.push(31), "");  // a byte more would make all of it U+FFFD
  EXPECT_EQ(stream.push(1), "\u00e9a");
}

TEST(Tokenizer, ChatPromptsAreThoseOfTheModelsAuthors) {
  EXPECT_EQ(chat_prompt(io::Architecture::kLlama, " Hello\n"),
            "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
  EXPECT_EQ(chat_prompt(io::Architecture::kGemma2, "Hello"),
            "<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n");
  const Tokenizer tokenizer =
      parse(tiny("", "", R"(,"added_tokens":[{"id":27,"content":"<start_of_turn>","special":true},
    {"id":28,"content":"<end_of_turn>","special":true}])"));
  EXPECT_EQ(chat_prompt_ids(io::Architecture::kGemma2, tokenizer, "hi"),
            (Ids{27, 21, 19, 5, 18, 8, 9, 28, 27, 13, 15, 4, 5, 12}));
  EXPECT_EQ(chat_end_id(io::Architecture::kGemma2, tokenizer), 28);
}

struct Bad {
  const char* name;
  std::string text;
  ErrorCode code;
  const char* named;  ///< must be in the message
};

class BadTokenizer : public testing::TestWithParam<Bad> {};

TEST_P(BadTokenizer, IsRefusedNamingFileAndPart) {
  try {
    parse(GetParam().text);
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), GetParam().code) << error.what();
    EXPECT_EQ(std::string(error.what()).find("t.json"), 0u) << error.what();
    EXPECT_NE(std::string(error.what()).find(GetParam().named), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

constexpr ErrorCode kBad = ErrorCode::kInvalidFormat, kOther = ErrorCode::kUnsupported;
INSTANTIATE_TEST_SUITE_P(
    , BadTokenizer,
    testing::Values(
        Bad{"NoObject", "[]", kBad, "expected an object"}, Bad{"NoModel", "{}", kBad, "model"},
        Bad{"WordPiece", R"({"model":{"type":"WordPiece","vocab":{}}})", kOther, "WordPiece"},
        Bad{"Unigram", R"({"model":{"type":"Unigram","vocab":[]}})", kOther, "Unigram"},
        Bad{"NegativeId", R"({"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}})", kBad, "model.vocab"},
        Bad{"HugeId", R"({"model":{"type":"BPE","vocab":{"a":4000000000},"merges":[]}})", kBad, "model.vocab"},
        Bad{"EqualIds", R"({"model":{"type":"BPE","vocab":{"a":1,"b":1},"merges":[]}})", kBad, "'a' and for 'b'"},
        Bad{"VocabularyIsAList", R"({"model":{"type":"BPE","vocab":["a"],"merges":[]}})", kBad, "model.vocab"},
        Bad{"MergeOfUnknown", tiny(R"(["a","B"])", "", ""), kBad, "model.merges[0]"},
        Bad{"MergeIntoUnknown", tiny(R"(["a","b"])", "", ""), kBad, "'ab'"},
        Bad{"MergeOfThree", tiny(R"(["a","b","c"])", "", ""), kBad, "a pair"},
        Bad{"MergesMixed", tiny(R"("a b",["a","b"])", R"(,"ab":30)", ""), kBad, "model.merges[1]"},
        Bad{"Version", tiny("", "", R"(,"version":"2.0")"), kOther, "version"},
        Bad{"Normalizer", tiny("", "", R"(,"normalizer":{"type":"NFC"})"), kOther, "normalizer.type"},
        Bad{"PreTokenizer", tiny("", "", R"(,"pre_tokenizer":{"type":"Metaspace"})"), kOther, "pre_tokenizer.type"},
        Bad{"PostProcessor", tiny("", "", R"(,"post_processor":{"type":"BertProcessing"})"), kOther, "post_processor"},
        Bad{"Decoder", tiny("", "", R"(,"decoder":{"type":"CTC"})"), kOther, "decoder.type"},
        Bad{"Backreference", tiny("", "", R"(,"pre_tokenizer":{"type":"Split","behavior":"Isolated","invert":false,
            "pattern":{"Regex":"(a)\\1"}})"),
            kOther, "regular expression"},
        Bad{"BrokenExpression", tiny("", "", R"(,"pre_tokenizer":{"type":"Split","behavior":"Isolated","invert":false,
            "pattern":{"Regex":"a("}})"),
            kBad, "regular expression"},
        Bad{"AddedTokenWithoutContent", tiny("", "", R"(,"added_tokens":[{"id":1}])"), kBad, "added_tokens[0]"}),
    [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace flute::model
