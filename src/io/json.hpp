#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace flute::io {

/// Parses JSON that must be trusted with nothing: nesting is limited to 100 levels, a key that occurs twice in one
/// object is an error, and the result keeps the order of keys. Takes linear time; looking a key up in an object is
/// linear too, so walk large objects with items(). Throws kInvalidFormat; messages start with `what` and name the byte.
nlohmann::ordered_json parse_json(std::string_view text, const std::string& what);

/// The same for a file of at most `max_bytes`; throws kIo where it cannot be read.
nlohmann::ordered_json read_json_file(const std::filesystem::path& path, size_t max_bytes = size_t{256} << 20);

/// `value` as it may stand in a message of one line: its JSON text, cut after 80 bytes.
std::string describe(const nlohmann::ordered_json& value);

}  // namespace flute::io
