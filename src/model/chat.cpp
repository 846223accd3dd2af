#include "model/chat.hpp"

#include <fmt/format.h>

#include "base/fail.hpp"
#include "model/unicode.hpp"

namespace flute::model {
namespace {

struct Format {
  std::string_view start, end_of_header, end;  ///< special tokens; end_of_header may be empty
  std::string_view after_header;
  std::string_view after_end;
  std::string_view model;  ///< what the model's turn is called
};

const Format& format_of(io::Architecture architecture) {
  static constexpr Format kLlama3 = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "\n\n", "", "assistant"};
  static constexpr Format kGemma2 = {"<start_of_turn>", "", "<end_of_turn>", "\n", "\n", "model"};
  return architecture == io::Architecture::kGemma2 ? kGemma2 : kLlama3;
}

int32_t special_id(const Tokenizer& tokenizer, std::string_view token) {
  const int32_t id = tokenizer.token_to_id(token);
  if (id < 0 || !tokenizer.is_special(id)) {
    fail(ErrorCode::kUnsupported, "not a chat model: expected the special token '{}' in its tokenizer, found none",
         token);
  }
  return id;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_white_space(first_char(text))) text.remove_prefix(char_bytes(text));
  while (!text.empty()) {
    const size_t bytes = last_char_bytes(text);
    if (!is_white_space(first_char(text.substr(text.size() - bytes)))) break;
    text.remove_suffix(bytes);
  }
  return text;
}

}  // namespace

std::string chat_prompt(io::Architecture architecture, std::string_view message) {
  const Format& format = format_of(architecture);
  const std::string well_formed = to_well_formed(message);
  return fmt::format("{0}user{1}{2}{3}{4}{5}{0}{6}{1}{2}", format.start, format.end_of_header, format.after_header,
                     trim(well_formed), format.end, format.after_end, format.model);
}

std::vector<int32_t> chat_prompt_ids(io::Architecture architecture, const Tokenizer& tokenizer,
                                     std::string_view message) {
  const Format& format = format_of(architecture);
  for (const std::string_view token : {format.start, format.end_of_header, format.end}) {
    if (!token.empty()) special_id(tokenizer, token);
  }
  return tokenizer.encode(chat_prompt(architecture, message));
}

int32_t chat_end_id(io::Architecture architecture, const Tokenizer& tokenizer) {
  return special_id(tokenizer, format_of(architecture).end);
}

}  // namespace flute::model
