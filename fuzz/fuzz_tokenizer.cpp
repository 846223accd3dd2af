// Input: a tokenizer.json, a NUL byte, a text. Whatever both hold, there is an answer or a flute::Error; streaming
// gives what decoding gives, in well-formed pieces.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "flute/error.hpp"
#include "io/json.hpp"
#include "model/tokenizer.hpp"
#include "model/unicode.hpp"

using namespace flute;

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

void check_decoding(const model::Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special_tokens) {
  model::StreamDecoder stream(tokenizer, skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) {
    const std::string part = stream.push(id);
    check(model::is_well_formed(part));
    text += part;
  }
  check(text + stream.finish() == tokenizer.decode(ids, skip_special_tokens));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t border = std::min(input.find('\0'), size);
  const std::string_view text = input.substr(std::min(border + 1, size));
  try {
    const auto tokenizer = model::Tokenizer::from_json(io::parse_json(input.substr(0, border), "input"), "input");
    const std::vector<int32_t> ids = tokenizer.encode(text);
    for (const int32_t id : ids) check(id >= 0);
    check_decoding(tokenizer, ids, true);
    check_decoding(tokenizer, ids, false);
    std::vector<int32_t> any = {-1, INT32_MAX};  // ids in an order that no text has
    for (const char byte : text) any.push_back(static_cast<unsigned char>(byte) % (tokenizer.vocab_size() + 2));
    check_decoding(tokenizer, any, false);
  } catch (const Error&) {
  }
  return 0;
}
