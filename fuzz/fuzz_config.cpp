// The input is a config.json and, after a NUL, a generation_config.json. Whatever they hold, they are refused with an
// Error or give a configuration that the runtime can count with.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "flute/error.hpp"
#include "io/json.hpp"
#include "io/model_config.hpp"
#include "io/quantization_config.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace flute;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), size);
  try {
    const auto config = io::parse_json(input.substr(0, end), "config.json");
    const auto generation =
        end < size ? io::parse_json(input.substr(end + 1), "generation_config.json") : nlohmann::ordered_json();
    if (io::has_flute_quantization(config)) {
      io::parse_quantization_config(config, "config.json").to_json();
    }
    const io::ModelConfig model = io::parse_model_config(config, generation, "config.json");
    if (model.num_heads % model.num_kv_heads != 0 || model.head_dim % 2 != 0 ||
        model.sliding_layers.size() != static_cast<size_t>(model.num_layers)) {
      std::abort();
    }
  } catch (const Error&) {
  }
  return 0;
}
