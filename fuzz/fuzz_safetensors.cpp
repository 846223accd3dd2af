// A safetensors file of any bytes is either refused with an Error or describes tensors that lie inside it.
#include <cstdint>
#include <cstdlib>

#include "flute/error.hpp"
#include "io/safetensors.hpp"

volatile std::byte seen;  // what is read may not be optimised away

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto file = flute::io::SafetensorsFile::from_bytes(std::as_bytes(std::span(data, size)), "input");
    for (const auto& tensor : file.tensors()) {
      flute::io::TensorPlan plan{tensor.name, tensor.dtype, tensor.shape};
      if (plan.bytes() != static_cast<int64_t>(tensor.data.size())) std::abort();
      for (const std::byte byte : tensor.data) seen = byte;
    }
  } catch (const flute::Error&) {
  }
  return 0;
}
