#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace flute::model {

/// A rule that cuts text into pieces, none of which a merge crosses.
class SplitPattern {
 public:
  enum class Behavior {
    kIsolated,           ///< matches are pieces, and so is what lies between them
    kMergedWithPrevious  ///< a match ends its piece (several in a row: only the first does)
  };
  /// A regular expression as Oniguruma reads it. Taken are the constructs that Llama-3's pattern and its relatives
  /// consist of and whose meaning is the same in PCRE2; throws kUnsupported naming `what` and the place of another.
  static SplitPattern regex(std::string_view pattern, Behavior behavior, const std::string& what);
  /// Occurrences of `text`, which is not empty.
  static SplitPattern literal(std::string text, Behavior behavior);

  /// Appends the pieces of `text` (well-formed UTF-8), none of them empty.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  struct Code;  // a compiled regular expression
  std::shared_ptr<const Code> code_;
  std::string literal_;  // used where there is no code_
  Behavior behavior_ = Behavior::kIsolated;
};

/// GPT-2's pattern, which a byte-level pre-tokenizer applies unless told otherwise.
std::string_view gpt2_pattern();

/// Is the one character a word character in the sense of Unicode's technical standard 18 (\w of Rust's `regex`)?
bool is_word_char(std::string_view character);

}  // namespace flute::model
