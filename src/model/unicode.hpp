#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace flute::model {

/// `text` with each maximal ill-formed part (Unicode, section 3.9, as in Rust and in Python's errors="replace")
/// replaced by U+FFFD.
std::string to_well_formed(std::string_view text);
bool is_well_formed(std::string_view text);
/// Bytes of `text` in front of a last character that more bytes could still complete.
size_t complete_prefix(std::string_view text);

/// Bytes of the character at the start of `text`, and that character. `text` is well-formed and not empty.
size_t char_bytes(std::string_view text);
char32_t first_char(std::string_view text);
/// Bytes of the character at the end of `text`.
size_t last_char_bytes(std::string_view text);

/// Unicode's property White_Space.
bool is_white_space(char32_t c);

/// The byte-level alphabet (GPT-2's): every byte has a printable character. `byte_letter` is that character in UTF-8,
/// `letter_byte` the inverse, -1 for a character outside the alphabet.
std::string_view byte_letter(unsigned char byte);
int letter_byte(char32_t letter);

}  // namespace flute::model
