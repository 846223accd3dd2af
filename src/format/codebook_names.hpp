#pragma once
#include <string_view>
#include <vector>

namespace flute {

/// The names that named_codebook() knows, in the order in which messages list them: "nf", "int", "fp", fp's variants.
std::vector<std::string_view> codebook_names();

}  // namespace flute
