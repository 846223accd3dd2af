#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace flute::model {

/// A token that is cut out of the text before anything else happens to it.
struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool single_word = false;  ///< only where no word character (\w) is next to it
  bool lstrip = false;       ///< takes the white space on its left with it
  bool rstrip = false;       ///< and on its right
  bool normalized = false;   ///< looked for in the normalized text, in its own normalized form
  bool special = false;      ///< left out by decode unless asked for
};

/// A part of a text: an added token, or text (id -1) still to be encoded.
struct TextPart {
  std::string_view text;
  int32_t id = -1;
};

/// Finds added tokens: of those that start leftmost the longest, then on behind it.
class AddedTokenMatcher {
 public:
  /// Looks for `pattern` as `token`, which must outlive this; of equal patterns the first counts.
  void add(std::string_view pattern, const AddedToken& token);
  /// Appends the parts of `text` (well-formed UTF-8).
  void split(std::string_view text, std::vector<TextPart>& parts) const;

 private:
  // A trie of bytes. Node 0 is the root; its children are in a table of their own, for most characters start no token.
  std::array<uint32_t, 256> first_{};                    // byte -> node, 0: none
  std::unordered_map<uint64_t, uint32_t> children_;      // node * 256 + byte -> node
  std::vector<const AddedToken*> token_at_ = {nullptr};  // node -> the token that ends there
};

}  // namespace flute::model
