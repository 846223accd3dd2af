#include "model/unicode.hpp"

#include <array>

namespace flute::model {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

enum class Form { kWell, kIll, kUnfinished };

/// The character, or the maximal part of one, at the start of `text` (Unicode, table 3-7).
struct Step {
  size_t bytes;
  Form form;
};

Step step(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {1, Form::kWell};
  if (lead < 0xC2 || lead > 0xF4) return {1, Form::kIll};
  const size_t bytes = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < bytes; ++i) {
    if (i == text.size()) return {i, Form::kUnfinished};
    if (byte(i) < low || byte(i) > high) return {i, Form::kIll};
    low = 0x80;
    high = 0xBF;
  }
  return {bytes, Form::kWell};
}

struct Alphabet {
  std::array<std::string, 256> letters;
  std::array<int, 512> bytes;

  Alphabet() {
    bytes.fill(-1);
    size_t next = 256;
    for (size_t byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
      const size_t letter = printable ? byte : next++;
      bytes[letter] = static_cast<int>(byte);
      if (letter < 0x80) {
        letters[byte] = static_cast<char>(letter);
      } else {
        letters[byte] = {static_cast<char>(0xC0 | letter >> 6), static_cast<char>(0x80 | (letter & 0x3F))};
      }
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

std::string to_well_formed(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const Step next = step(text);
    result += next.form == Form::kWell ? text.substr(0, next.bytes) : kReplacement;
    text.remove_prefix(next.bytes);
  }
  return result;
}

bool is_well_formed(std::string_view text) {
  while (!text.empty()) {
    const Step next = step(text);
    if (next.form != Form::kWell) return false;
    text.remove_prefix(next.bytes);
  }
  return true;
}

size_t complete_prefix(std::string_view text) {
  size_t done = 0;
  while (done < text.size()) {
    const Step next = step(text.substr(done));
    if (next.form == Form::kUnfinished) break;
    done += next.bytes;
  }
  return done;
}

size_t char_bytes(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

char32_t first_char(std::string_view text) {
  const size_t bytes = char_bytes(text);
  const auto lead = static_cast<unsigned char>(text[0]);
  if (bytes == 1) return lead;
  auto c = static_cast<char32_t>(lead & (0xFF >> (bytes + 1)));
  for (size_t i = 1; i < bytes; ++i) c = c << 6 | static_cast<char32_t>(text[i] & 0x3F);
  return c;
}

size_t last_char_bytes(std::string_view text) {
  size_t bytes = 1;
  while ((static_cast<unsigned char>(text[text.size() - bytes]) & 0xC0) == 0x80) ++bytes;
  return bytes;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

std::string_view byte_letter(unsigned char byte) { return alphabet().letters[byte]; }

int letter_byte(char32_t letter) { return letter < alphabet().bytes.size() ? alphabet().bytes[letter] : -1; }

}  // namespace flute::model
