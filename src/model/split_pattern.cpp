#include "model/split_pattern.hpp"

#include <algorithm>
#include <cstdint>
#include <new>
#include <utility>

#include "base/fail.hpp"
#include "io/files.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace flute::model {
namespace {

constexpr std::string_view kContractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";

/// The pattern in PCRE2's syntax. `\s` is written out because PCRE2 counts U+180E as a space, which Unicode does not
/// any more. Case-insensitive groups are taken only in the one form that cannot contain a character folding to several.
std::string translate(std::string_view pattern, const std::string& what) {
  static constexpr std::pair<std::string_view, std::string_view> kTokens[] = {
      {kContractions, kContractions},
      {"(?:", "(?:"},
      {"(?=", "(?="},
      {"(?!", "(?!"},
      {"(?", ""},  // any other kind of group
      {"(", "(?:"},
      {")", ")"},
      {"[^", "[^"},
      {"|", "|"},
      {"?", "?"},
      {"*", "*"},
      {"+", "+"},
      {"\\s", "\\p{White_Space}"},
      {"\\S", "\\P{White_Space}"},
      {"\\r", "\\r"},
      {"\\n", "\\n"},
      {"\\t", "\\t"},
  };
  static constexpr std::string_view kCategories = "LMNPSZC";
  const auto refuse = [&](size_t position) {
    fail(ErrorCode::kUnsupported, "{}: this regular expression cannot be taken over exactly: '{}' at byte {} of '{}'",
         what, io::printable(pattern.substr(position), 12), position, io::printable(pattern));
  };
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  std::string result;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size();) {
    const std::string_view rest = pattern.substr(i);
    const char c = rest[0];
    if (in_class && c != '\\' && c != ']') {
      if (c == '[' || c == '&' || c == '^') refuse(i);  // a nested set, an intersection
      result += c;
      ++i;
      continue;
    }
    if (c == '[' || c == ']') {
      if (in_class == (c == '[')) refuse(i);
      in_class = c == '[';
      const bool negated = rest.starts_with("[^");
      if (in_class && rest.substr(negated ? 2 : 1).starts_with("]")) refuse(i);  // an empty set
      result += rest.substr(0, negated ? 2 : 1);
      i += negated ? 2 : 1;
      continue;
    }
    if (rest.size() >= 5 && (rest.starts_with("\\p{") || rest.starts_with("\\P{")) &&
        kCategories.find(rest[3]) != kCategories.npos) {  // a general category: \p{L}, \p{Lu}
      const size_t letters = rest[4] >= 'a' && rest[4] <= 'z' ? 2 : 1;
      if (rest.size() <= 3 + letters || rest[3 + letters] != '}') refuse(i);
      result += rest.substr(0, 4 + letters);
      i += 4 + letters;
      continue;
    }
    if (c == '{') {  // {1,3} or {2}; what follows must not change its kind
      size_t end = 1;
      while (end < rest.size() && is_digit(rest[end])) ++end;
      const size_t low = end - 1;
      size_t high = low;
      if (end < rest.size() && rest[end] == ',') {
        const size_t comma = end++;
        while (end < rest.size() && is_digit(rest[end])) ++end;
        high = end - comma - 1;
      }
      if (low == 0 || low > 3 || high == 0 || high > 3 || end >= rest.size() || rest[end] != '}') refuse(i);
      ++end;
      if (end < rest.size() && (rest[end] == '?' || rest[end] == '+' || rest[end] == '*' || rest[end] == '{'))
        refuse(i);
      result += rest.substr(0, end);
      i += end;
      continue;
    }
    size_t taken = 0;
    for (const auto& [from, to] : kTokens) {
      if (!rest.starts_with(from)) continue;
      if (to.empty()) refuse(i);
      result += to;
      taken = from.size();
      break;
    }
    if (taken == 0) {
      if (c == '\\' || c == '.' || c == '^' || c == '$' || c == '}') refuse(i);
      result += c;
      taken = 1;
    }
    i += taken;
  }
  return result;
}

constexpr size_t kMatchLimit = 10'000'000;  // PCRE2's own default

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
using CodePointer = std::unique_ptr<pcre2_code, FreeCode>;

std::string error_text(int error) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(error, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

CodePointer compile(const std::string& pattern, const std::string& what) {
  int error = 0;
  PCRE2_SIZE position = 0;
  CodePointer code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &error, &position, nullptr));
  if (!code) {
    fail(ErrorCode::kInvalidFormat, "{}: regular expression '{}': {}", what, io::printable(pattern), error_text(error));
  }
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // without it, matching is only slower
  return code;
}

/// What one thread needs to match with.
class Matcher {
 public:
  explicit Matcher(const pcre2_code* code)
      : code_(code),
        data_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        stack_(pcre2_jit_stack_create(size_t{32} << 10, size_t{64} << 20, nullptr)) {
    if (data_ == nullptr || context_ == nullptr) {
      release();
      throw std::bad_alloc();
    }
    if (stack_ != nullptr) pcre2_jit_stack_assign(context_, nullptr, stack_);
  }
  Matcher(const Matcher&) = delete;
  Matcher& operator=(const Matcher&) = delete;
  ~Matcher() { release(); }

  /// The next match at or behind `from`: true and its ends.
  bool find(std::string_view text, size_t from, size_t& begin, size_t& end) {
    // A few steps a byte are enough for any pattern that is meant to split text; backtracking without end is not.
    pcre2_set_match_limit(context_,
                          static_cast<uint32_t>(std::min<size_t>(UINT32_MAX, kMatchLimit + 16 * text.size())));
    const int count = pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                  PCRE2_NO_UTF_CHECK, data_, context_);
    if (count == PCRE2_ERROR_NOMATCH) return false;
    if (count < 0) fail(ErrorCode::kUnsupported, "splitting the text by regular expression: {}", error_text(count));
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data_);
    begin = ends[0];
    end = ends[1];
    return true;
  }

 private:
  void release() {
    pcre2_match_data_free(data_);
    pcre2_match_context_free(context_);
    pcre2_jit_stack_free(stack_);
  }
  const pcre2_code* code_;
  pcre2_match_data* data_;
  pcre2_match_context* context_;
  pcre2_jit_stack* stack_;
};

}  // namespace

struct SplitPattern::Code {
  CodePointer pointer;
};

SplitPattern SplitPattern::regex(std::string_view pattern, Behavior behavior, const std::string& what) {
  SplitPattern result;
  result.code_ = std::make_shared<const Code>(Code{compile(translate(pattern, what), what)});
  result.behavior_ = behavior;
  uint32_t matches_empty = 0;
  pcre2_pattern_info(result.code_->pointer.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0) {
    fail(ErrorCode::kUnsupported, "{}: expected a regular expression that cannot match nothing, found '{}'", what,
         io::printable(pattern));
  }
  return result;
}

SplitPattern SplitPattern::literal(std::string text, Behavior behavior) {
  SplitPattern result;
  result.literal_ = std::move(text);
  result.behavior_ = behavior;
  return result;
}

void SplitPattern::split(std::string_view text, std::vector<std::string_view>& pieces) const {
  const bool merge_matches = behavior_ == Behavior::kMergedWithPrevious;
  bool after_text = false;  // the last piece is what lies in front of the match
  size_t done = 0;
  const auto take_match = [&](size_t begin, size_t end) {
    if (begin > done) {
      pieces.push_back(text.substr(done, begin - done));
      after_text = true;
    }
    if (merge_matches && after_text) {
      pieces.back() = {pieces.back().data(), pieces.back().size() + (end - begin)};
    } else {
      pieces.push_back(text.substr(begin, end - begin));
    }
    after_text = false;
    done = end;
  };
  size_t begin = 0, end = 0;
  if (code_) {
    Matcher matcher(code_->pointer.get());
    while (done < text.size() && matcher.find(text, done, begin, end) && end > done) take_match(begin, end);
  } else {
    while ((begin = text.find(literal_, done)) != text.npos) take_match(begin, begin + literal_.size());
  }
  if (done < text.size()) pieces.push_back(text.substr(done));
}

std::string_view gpt2_pattern() {
  return R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
}

bool is_word_char(std::string_view character) {
  static const CodePointer code =
      compile(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}])", "the word characters of added tokens");
  size_t begin = 0, end = 0;
  return Matcher(code.get()).find(character, 0, begin, end);
}

}  // namespace flute::model
