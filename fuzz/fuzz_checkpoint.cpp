// The input is a config.json, a NUL, and a safetensors file: a quantized checkpoint of one shard. Whatever its layers
// claim to be, looking at them and dequantizing them reads nothing outside.
#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "flute/error.hpp"
#include "io/checkpoint.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace flute;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), size);
  try {
    auto config = io::parse_json(input.substr(0, end), "config.json");
    std::vector<io::SafetensorsFile> shards;
    shards.push_back(io::SafetensorsFile::from_bytes(
        std::as_bytes(std::span(data, size)).subspan(std::min(end + 1, size)), "shard"));
    const auto checkpoint = io::Checkpoint::from_parts("checkpoint", std::move(config), std::move(shards));
    for (const std::string& layer : checkpoint.quantized_layers()) {
      try {
        const PackedView view = checkpoint.packed_layer(layer);
        const int64_t rows = std::min<int64_t>(view.n, 4);
        std::vector<float> values(static_cast<size_t>(rows * view.k));
        dequantize_rows(view, 0, rows, DType::kF32, values.data());
        dequantize_rows(view, view.n - rows, view.n, DType::kF16, values.data());
      } catch (const Error&) {
      }
    }
  } catch (const Error&) {
  }
  return 0;
}
