#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/fail.hpp"
#include "io/files.hpp"
#include "io/json.hpp"
#include "model/tokenizer_parts.hpp"
#include "model/unicode.hpp"

namespace flute::model {
namespace {

using Json = nlohmann::ordered_json;
using io::describe;
using io::printable;

/// Ids index tables; no known vocabulary comes near this.
constexpr int32_t kMaxId = 1 << 22;

/// How long a replacement may make a text. The usual one makes 3 bytes of a space; a file that asks for more than
/// 64-fold growth is not a tokenizer's. Positions in the result must fit into 31 bits.
size_t max_replaced(size_t bytes) { return std::min<size_t>(INT32_MAX, 64 * bytes + (size_t{1} << 16)); }

/// A value and where it stands: "tokenizer.json: model.vocab", or the file alone.
struct Part {
  const Json* json;
  std::string where;
  bool is_file = false;

  /// Null and absent are the same.
  std::optional<Part> find(const char* key) const {
    if (!json->is_object()) fail(ErrorCode::kInvalidFormat, "{}: expected an object, found {}", where, describe(*json));
    const auto found = json->find(key);
    if (found == json->end() || found->is_null()) return std::nullopt;
    return Part{&*found, where + (is_file ? ": " : ".") + key};
  }
  Part at(const char* key) const {
    std::optional<Part> part = find(key);
    if (!part) fail(ErrorCode::kInvalidFormat, "{}: expected a field '{}', found none", where, key);
    return *std::move(part);
  }
  std::vector<Part> items() const {
    if (!json->is_array()) fail(ErrorCode::kInvalidFormat, "{}: expected an array, found {}", where, describe(*json));
    std::vector<Part> parts;
    for (const Json& item : *json) parts.push_back({&item, fmt::format("{}[{}]", where, parts.size())});
    return parts;
  }
  const std::string& string() const {
    if (!json->is_string()) fail(ErrorCode::kInvalidFormat, "{}: expected a string, found {}", where, describe(*json));
    return json->get_ref<const std::string&>();
  }
  bool boolean() const {
    if (!json->is_boolean()) {
      fail(ErrorCode::kInvalidFormat, "{}: expected true or false, found {}", where, describe(*json));
    }
    return json->get<bool>();
  }
  bool boolean_or(const char* key, bool otherwise) const {
    const std::optional<Part> part = find(key);
    return part ? part->boolean() : otherwise;
  }
  int32_t id() const {
    if (!json->is_number_unsigned() || json->get<uint64_t>() >= uint64_t{kMaxId}) {
      fail(ErrorCode::kInvalidFormat, "{}: expected an id in 0..{}, found {}", where, kMaxId - 1, describe(*json));
    }
    return json->get<int32_t>();
  }
  const std::string& type() const { return at("type").string(); }
};

[[noreturn]] void unsupported(const Part& part, std::string_view expected) {
  fail(ErrorCode::kUnsupported, "{}: expected {}, found {}", part.where, expected, describe(*part.json));
}

/// The elements of a `Sequence`, or the part alone.
std::vector<Part> flatten(const Part& part, const char* list) {
  if (part.type() != "Sequence") return {part};
  std::vector<Part> flat;
  for (const Part& item : part.at(list).items()) {
    for (Part& inner : flatten(item, list)) flat.push_back(std::move(inner));
  }
  return flat;
}

NormalizerStep parse_replace(const Part& part) {
  const Part pattern = part.at("pattern");
  const std::optional<Part> text = pattern.find("String");
  if (!text || text->string().empty()) unsupported(pattern, "{\"String\": text}");
  return {text->string(), part.at("content").string()};
}

std::vector<NormalizerStep> parse_normalizer(const Part& whole) {
  std::vector<NormalizerStep> steps;
  for (const Part& part : flatten(whole, "normalizers")) {
    if (part.type() == "Replace") {
      steps.push_back(parse_replace(part));
    } else if (part.type() == "Prepend") {
      steps.push_back({"", part.at("prepend").string()});
    } else {
      unsupported(part.at("type"), "\"Replace\", \"Prepend\" or a \"Sequence\" of them");
    }
  }
  return steps;
}

SplitPattern parse_split(const Part& part) {
  const Part behavior = part.at("behavior");
  const bool isolated = behavior.string() == "Isolated";
  if (!isolated && behavior.string() != "MergedWithPrevious") {
    unsupported(behavior, "\"Isolated\" or \"MergedWithPrevious\"");
  }
  const auto kind = isolated ? SplitPattern::Behavior::kIsolated : SplitPattern::Behavior::kMergedWithPrevious;
  if (part.boolean_or("invert", false)) unsupported(part.at("invert"), "false");
  const Part pattern = part.at("pattern");
  if (const std::optional<Part> regex = pattern.find("Regex")) {
    return SplitPattern::regex(regex->string(), kind, regex->where);
  }
  const std::optional<Part> text = pattern.find("String");
  if (!text || text->string().empty()) unsupported(pattern, "{\"Regex\": expression} or {\"String\": text}");
  return SplitPattern::literal(text->string(), kind);
}

PreTokenizer parse_pre_tokenizer(const Part& whole) {
  PreTokenizer result;
  for (const Part& part : flatten(whole, "pretokenizers")) {
    if (result.byte_level) unsupported(part, "nothing behind \"ByteLevel\"");
    if (part.type() == "Split") {
      result.splits.push_back(parse_split(part));
    } else if (part.type() == "ByteLevel") {
      if (part.at("add_prefix_space").boolean()) unsupported(part.at("add_prefix_space"), "false");
      if (part.boolean_or("use_regex", true)) {
        result.splits.push_back(SplitPattern::regex(gpt2_pattern(), SplitPattern::Behavior::kIsolated, part.where));
      }
      result.byte_level = true;
    } else {
      unsupported(part.at("type"), "\"Split\", \"ByteLevel\" or a \"Sequence\" of them");
    }
  }
  return result;
}

Template parse_template(const Part& part) {
  Template result;
  const std::optional<Part> tokens = part.find("special_tokens");
  for (const Part& piece : part.at("single").items()) {
    if (const std::optional<Part> sequence = piece.find("Sequence")) {
      if (sequence->at("id").string() != "A") unsupported(sequence->at("id"), "\"A\"");
      result.push_back({true, {}});
      continue;
    }
    const Part name = piece.at("SpecialToken").at("id");
    const std::optional<Part> token = tokens ? tokens->find(name.string().c_str()) : std::nullopt;
    if (!token) {
      fail(ErrorCode::kInvalidFormat, "{}: expected a name from special_tokens, found {}", name.where,
           describe(*name.json));
    }
    TemplatePiece special;
    for (const Part& id : token->at("ids").items()) special.ids.push_back(id.id());
    result.push_back(std::move(special));
  }
  if (std::count_if(result.begin(), result.end(), [](const TemplatePiece& piece) { return piece.is_text; }) != 1) {
    unsupported(part.at("single"), "the sequence \"A\" once");
  }
  return result;
}

std::vector<Template> parse_post_processor(const Part& whole) {
  std::vector<Template> templates;
  for (const Part& part : flatten(whole, "processors")) {
    if (part.type() == "TemplateProcessing") {
      templates.push_back(parse_template(part));
    } else if (part.type() != "ByteLevel") {  // which only moves offsets
      unsupported(part.at("type"), "\"TemplateProcessing\", \"ByteLevel\" or a \"Sequence\" of them");
    }
  }
  return templates;
}

Decoder parse_decoder(const Part& whole) {
  Decoder result;
  const std::vector<Part> parts = flatten(whole, "decoders");
  if (parts.size() == 1 && parts[0].type() == "ByteLevel") {
    result.kind = Decoder::Kind::kByteLevel;
    return result;
  }
  result.kind = Decoder::Kind::kChain;
  // The one order in which these mean what the decoding state does.
  static constexpr std::string_view kOrder[] = {"Replace", "ByteFallback", "Fuse", "Strip"};
  size_t reached = 0;
  bool fused = false;
  for (const Part& part : parts) {
    const auto* place = std::find(std::begin(kOrder) + reached, std::end(kOrder), part.type());
    if (place == std::end(kOrder)) {
      unsupported(part.at("type"),
                  "\"ByteLevel\", or \"Replace\", \"ByteFallback\", \"Fuse\", \"Strip\" in this order");
    }
    reached = static_cast<size_t>(place - std::begin(kOrder)) + (*place == "Replace" ? 0 : 1);
    if (*place == "Replace") {
      result.replaces.push_back(parse_replace(part));
    } else if (*place == "ByteFallback") {
      result.byte_fallback = true;
    } else if (*place == "Fuse") {
      fused = true;
    } else {
      result.strip = part.at("content").string();
      result.strip_count = static_cast<size_t>(part.at("start").id());
      if (!fused || part.at("stop").id() != 0) unsupported(part, "\"Strip\" behind \"Fuse\" with \"stop\": 0");
      if (result.strip.empty() || char_bytes(result.strip) != result.strip.size()) {
        fail(ErrorCode::kInvalidFormat, "{}: expected one character, found {}", part.at("content").where,
             describe(*part.at("content").json));
      }
    }
  }
  return result;
}

void parse_vocabulary(const Part& part, Vocabulary& vocabulary) {
  if (!part.json->is_object()) part.find("");  // throws
  vocabulary.reserve(part.json->size());
  for (const auto& [token, id] : part.json->items()) {
    const int32_t number = Part{&id, part.where}.id();
    if (!vocabulary.add(token, number)) {
      fail(ErrorCode::kInvalidFormat, "{}: expected ids that differ, found {} for '{}' and for '{}'", part.where,
           number, printable(*vocabulary.token(number)), printable(token));
    }
  }
}

/// A merge is "left right" or ["left", "right"], the same way for all.
std::vector<Bpe::Merge> parse_merges(const Part& part, const Vocabulary& vocabulary) {
  if (!part.json->is_array()) part.items();  // throws
  std::vector<Bpe::Merge> merges;
  merges.reserve(part.json->size());
  const bool as_text = !part.json->empty() && part.json->front().is_string();
  for (size_t i = 0; i < part.json->size(); ++i) {
    const Json& merge = (*part.json)[i];
    const auto invalid = [&](std::string_view expected) {
      fail(ErrorCode::kInvalidFormat, "{}[{}]: expected {}, found {}", part.where, i, expected, describe(merge));
    };
    std::string_view left, right;
    if (as_text) {
      if (!merge.is_string()) invalid("\"left right\" as in the first merge");
      const std::string_view both = merge.get_ref<const std::string&>();
      if (both.starts_with("#version")) continue;
      const size_t space = both.find(' ');
      if (space == both.npos || both.find(' ', space + 1) != both.npos) invalid("two tokens with a space between them");
      left = both.substr(0, space);
      right = both.substr(space + 1);
    } else {
      if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) {
        invalid("a pair of tokens");
      }
      left = merge[0].get_ref<const std::string&>();
      right = merge[1].get_ref<const std::string&>();
    }
    const auto id_of = [&](std::string_view token) {
      const int32_t id = vocabulary.find(token);
      if (id < 0) invalid(fmt::format("'{}' in the vocabulary", printable(token)));
      return id;
    };
    merges.push_back({id_of(left), id_of(right), id_of(std::string(left).append(right))});
  }
  return merges;
}

void parse_model(const Part& model, TokenizerParts& parts) {
  if (model.type() != "BPE") unsupported(model.at("type"), "\"BPE\"");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const std::optional<Part> affix = model.find(key);
    if (affix && !affix->string().empty()) unsupported(*affix, "null");
  }
  const std::optional<Part> dropout = model.find("dropout");
  if (dropout && *dropout->json != 0) unsupported(*dropout, "null");
  parse_vocabulary(model.at("vocab"), parts.vocabulary);
  parts.merges = parse_merges(model.at("merges"), parts.vocabulary);
  if (const std::optional<Part> unknown = model.find("unk_token")) {
    parts.bpe.unknown_id = parts.vocabulary.find(unknown->string());
    if (parts.bpe.unknown_id < 0) {
      fail(ErrorCode::kInvalidFormat, "{}: expected a token of the vocabulary, found {}", unknown->where,
           describe(*unknown->json));
    }
  }
  parts.bpe.fuse_unknown = model.boolean_or("fuse_unk", false);
  parts.bpe.byte_fallback = model.boolean_or("byte_fallback", false);
  parts.bpe.ignore_merges = model.boolean_or("ignore_merges", false);
}

/// The file's own "id" does not count, as in the reference implementation: a token of the vocabulary keeps its id
/// there, others are numbered on from the vocabulary's size.
void parse_added_tokens(const Part& list, TokenizerParts& parts) {
  auto next_id = static_cast<int32_t>(parts.vocabulary.size());
  std::unordered_map<std::string_view, AddedToken*> known;
  for (const Part& part : list.items()) {
    AddedToken token;
    token.content = part.at("content").string();
    token.single_word = part.boolean_or("single_word", false);
    token.lstrip = part.boolean_or("lstrip", false);
    token.rstrip = part.boolean_or("rstrip", false);
    token.normalized = part.boolean_or("normalized", false);
    token.special = part.boolean_or("special", false);
    if (token.content.empty()) continue;
    if (token.special) parts.special.insert(token.content);
    if (const auto before = known.find(token.content); before != known.end()) {
      token.id = before->second->id;
      *before->second = std::move(token);
      continue;
    }
    token.id = parts.vocabulary.find(token.content);
    if (token.id < 0) token.id = next_id++;
    parts.added.push_back(std::move(token));
    known.emplace(parts.added.back().content, &parts.added.back());
  }
}

}  // namespace

TokenizerParts parse_tokenizer(const Json& root, const std::string& what) {
  const Part whole{&root, what, true};
  TokenizerParts parts;
  const std::optional<Part> version = whole.find("version");
  if (version && version->string() != "1.0") unsupported(*version, "\"1.0\"");
  parse_model(whole.at("model"), parts);
  if (const auto part = whole.find("normalizer")) parts.normalizer = parse_normalizer(*part);
  if (const auto part = whole.find("pre_tokenizer")) parts.pre_tokenizer = parse_pre_tokenizer(*part);
  if (const auto part = whole.find("post_processor")) parts.templates = parse_post_processor(*part);
  if (const auto part = whole.find("decoder")) parts.decoder = parse_decoder(*part);
  if (const auto part = whole.find("added_tokens")) parse_added_tokens(*part, parts);
  return parts;
}

std::string normalize(std::string_view text, const std::vector<NormalizerStep>& steps) {
  const size_t limit = max_replaced(text.size());
  std::string result(text);
  for (const NormalizerStep& step : steps) {
    if (step.pattern.empty()) {
      if (!result.empty()) result.insert(0, step.content);
      continue;
    }
    size_t found = result.find(step.pattern);
    if (found == result.npos) continue;
    std::string replaced;
    replaced.reserve(result.size());
    size_t done = 0;
    for (; found != result.npos; found = result.find(step.pattern, done)) {
      replaced.append(result, done, found - done).append(step.content);
      done = found + step.pattern.size();
      if (replaced.size() > limit) {
        fail(ErrorCode::kUnsupported, "replacing '{}' in a text of {} bytes: expected at most {} bytes, found more",
             printable(step.pattern), text.size(), limit);
      }
    }
    replaced.append(result, done);
    result = std::move(replaced);
  }
  return result;
}

}  // namespace flute::model
