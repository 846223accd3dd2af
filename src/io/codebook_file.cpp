#include <cmath>

#include "base/fail.hpp"
#include "io/checkpoint.hpp"
#include "io/files.hpp"
#include "io/json.hpp"

namespace flute::io {

Codebook parse_codebook(std::string_view text, const std::string& what) {
  const nlohmann::ordered_json file = parse_json(text, what);
  if (!file.is_object() || !file.contains("bits") || !file.contains("values")) {
    fail(ErrorCode::kInvalidFormat, "{}: codebook file: expected {{\"bits\": b, \"values\": [...]}}, found {}", what,
         describe(file));
  }
  const auto& bits = file["bits"];
  if (!bits.is_number_integer() || bits < 1 || bits > 8) {
    fail(ErrorCode::kInvalidFormat, "{}: bits: expected 1 to 8, found {}", what, describe(bits));
  }
  const auto& values = file["values"];
  Codebook codebook;
  codebook.bits = bits.get<int>();
  const size_t expected = size_t{1} << codebook.bits;
  if (!values.is_array() || values.size() != expected) {
    fail(ErrorCode::kInvalidFormat, "{}: values: expected {} numbers for {} bits, found {}", what, expected,
         codebook.bits, values.is_array() ? fmt::format("{}", values.size()) : describe(values));
  }
  for (size_t i = 0; i < expected; ++i) {
    const auto& value = values[i];
    // Rounding to float may overflow: 1e39 is a number but not one of a table.
    const float number = value.is_number() ? static_cast<float>(value.get<double>()) : NAN;
    if (!std::isfinite(number)) {
      fail(ErrorCode::kInvalidFormat, "{}: values[{}]: expected a finite number, found {}", what, i, describe(value));
    }
    codebook.values.push_back(number);
  }
  return codebook;
}

Codebook read_codebook_file(const std::filesystem::path& path) {
  return parse_codebook(read_file(path, size_t{1} << 20), path.string());
}

}  // namespace flute::io
