#pragma once
#include <deque>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "model/bpe.hpp"
#include "model/split_pattern.hpp"
#include "model/tokenizer_added.hpp"

namespace flute::model {

/// Prepends `content` (where `pattern` is empty) or replaces each `pattern` by it.
struct NormalizerStep {
  std::string pattern;
  std::string content;
};

struct PreTokenizer {
  std::vector<SplitPattern> splits;  ///< one after the other
  bool byte_level = false;           ///< pieces are then written in the byte-level alphabet
};

/// One template of the post-processor: the ids of special tokens, or the place of the text's own ids.
struct TemplatePiece {
  bool is_text = false;
  std::vector<int32_t> ids;
};
using Template = std::vector<TemplatePiece>;

struct Decoder {
  enum class Kind {
    kNone,       ///< tokens with a space between them
    kByteLevel,  ///< tokens are in the byte-level alphabet
    kChain       ///< what follows, in this order
  };
  Kind kind = Kind::kNone;
  std::vector<NormalizerStep> replaces;  ///< in each token
  bool byte_fallback = false;            ///< <0x00>..<0xFF> are bytes
  std::string strip;                     ///< a character to take off the start of the text
  size_t strip_count = 0;                ///< up to so many times
};

/// What a tokenizer.json says.
struct TokenizerParts {
  Vocabulary vocabulary;
  std::vector<Bpe::Merge> merges;
  BpeOptions bpe;
  std::deque<AddedToken> added;  ///< by content unique, with the ids that the reference implementation gives them
  std::unordered_set<std::string> special;
  std::vector<NormalizerStep> normalizer;
  PreTokenizer pre_tokenizer;
  std::vector<Template> templates;  ///< applied one after the other
  Decoder decoder;
};

/// Throws kInvalidFormat or kUnsupported; messages start with `what` and name the part.
TokenizerParts parse_tokenizer(const nlohmann::ordered_json& root, const std::string& what);

/// Applies a normalizer (or a decoder's replacements) to one text.
std::string normalize(std::string_view text, const std::vector<NormalizerStep>& steps);

}  // namespace flute::model
