// A codebook file of any text is either refused with an Error or holds a table that is valid.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "flute/error.hpp"
#include "io/checkpoint.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  flute::Codebook codebook;
  try {
    codebook = flute::io::parse_codebook({reinterpret_cast<const char*>(data), size}, "input");
  } catch (const flute::Error&) {
    return 0;
  }
  try {
    validate(codebook, "codebook");
  } catch (const flute::Error&) {
    std::abort();
  }
  return 0;
}
