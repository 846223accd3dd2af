#include "model/tokenizer_added.hpp"

#include <algorithm>

#include "model/split_pattern.hpp"
#include "model/unicode.hpp"

namespace flute::model {
namespace {

bool ends_with_word(std::string_view text) {
  return !text.empty() && is_word_char(text.substr(text.size() - last_char_bytes(text)));
}

bool starts_with_word(std::string_view text) { return !text.empty() && is_word_char(text.substr(0, char_bytes(text))); }

/// Where the white space at the end of `text` starts.
size_t trailing_space(std::string_view text) {
  while (!text.empty()) {
    const size_t bytes = last_char_bytes(text);
    if (!is_white_space(first_char(text.substr(text.size() - bytes)))) break;
    text.remove_suffix(bytes);
  }
  return text.size();
}

/// Bytes of white space at the start of `text`.
size_t leading_space(std::string_view text) {
  size_t bytes = 0;
  while (bytes < text.size() && is_white_space(first_char(text.substr(bytes)))) bytes += char_bytes(text.substr(bytes));
  return bytes;
}

}  // namespace

void AddedTokenMatcher::add(std::string_view pattern, const AddedToken& token) {
  uint32_t node = 0;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const auto byte = static_cast<unsigned char>(pattern[i]);
    uint32_t& child = i == 0 ? first_[byte] : children_[uint64_t{node} << 8 | byte];
    if (child == 0) {
      child = static_cast<uint32_t>(token_at_.size());
      token_at_.push_back(nullptr);
    }
    node = child;
  }
  if (node != 0 && token_at_[node] == nullptr) token_at_[node] = &token;
}

void AddedTokenMatcher::split(std::string_view text, std::vector<TextPart>& parts) const {
  size_t done = 0;  // everything in front of it is in `parts`
  for (size_t i = 0; i < text.size();) {
    uint32_t node = first_[static_cast<unsigned char>(text[i])];
    const AddedToken* token = nullptr;
    size_t end = i;
    for (size_t next = i + 1; node != 0; ++next) {
      if (token_at_[node] != nullptr) {
        token = token_at_[node];
        end = next;
      }
      if (next == text.size()) break;
      const auto child = children_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[next]));
      node = child == children_.end() ? 0 : child->second;
    }
    if (token == nullptr) {
      ++i;
      continue;
    }
    size_t start = i;
    i = end;  // the search goes on here whatever the flags below make of the match
    if (token->single_word && (ends_with_word(text.substr(0, start)) || starts_with_word(text.substr(end)))) continue;
    if (token->lstrip) start = std::max(trailing_space(text.substr(0, start)), done);
    if (token->rstrip) end += leading_space(text.substr(end));
    if (done < start) parts.push_back({text.substr(done, start - done), -1});
    parts.push_back({{}, token->id});
    done = end;
  }
  if (done < text.size()) parts.push_back({text.substr(done), -1});
}

}  // namespace flute::model
