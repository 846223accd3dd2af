#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/model_config.hpp"
#include "model/tokenizer.hpp"

namespace flute::model {

/// A user's message as the first turn of a conversation, up to where the model's answer starts: the format that Llama-3
/// or Gemma-2 was trained on, white space around the message removed. The begin-of-text token is not in it.
std::string chat_prompt(io::Architecture architecture, std::string_view message);

/// The same as ids, begin-of-text included. Throws kUnsupported where `tokenizer` lacks a token of the format: then the
/// model was not trained to chat.
std::vector<int32_t> chat_prompt_ids(io::Architecture architecture, const Tokenizer& tokenizer,
                                     std::string_view message);

/// The token that ends the model's answer; throws as above.
int32_t chat_end_id(io::Architecture architecture, const Tokenizer& tokenizer);

}  // namespace flute::model
