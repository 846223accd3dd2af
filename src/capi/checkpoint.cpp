// Checkpoints of the C ABI.
#include "io/checkpoint.hpp"

#include <vector>

#include "capi/guard.hpp"

using namespace flute;        // NOLINT(google-build-using-namespace): this file only translates
using namespace flute::capi;  // NOLINT(google-build-using-namespace)

struct flute_checkpoint {
  io::Checkpoint checkpoint;
};

extern "C" {

flute_status flute_checkpoint_open(const char* path, flute_checkpoint** checkpoint) {
  return guard(__func__, [&] {
    require(path, "path");
    require(checkpoint, "checkpoint");
    *checkpoint = make_handle<flute_checkpoint>(io::Checkpoint::open(path));
  });
}

void flute_checkpoint_destroy(flute_checkpoint* checkpoint) { delete checkpoint; }

int64_t flute_checkpoint_layer_count(const flute_checkpoint* checkpoint) {
  return checkpoint == nullptr ? 0 : static_cast<int64_t>(checkpoint->checkpoint.quantized_layers().size());
}

const char* flute_checkpoint_layer_name(const flute_checkpoint* checkpoint, int64_t index) {
  if (index < 0 || index >= flute_checkpoint_layer_count(checkpoint)) return nullptr;
  return checkpoint->checkpoint.quantized_layers()[static_cast<size_t>(index)].c_str();
}

flute_status flute_checkpoint_get_layer(const flute_checkpoint* checkpoint, const char* layer,
                                        flute_packed_view* view) {
  return guard(__func__, [&] {
    require(checkpoint, "checkpoint");
    require(layer, "layer");
    require_size(view, "view");
    write_struct(from_packed_view(checkpoint->checkpoint.packed_layer(layer)), view);
  });
}

flute_status flute_checkpoint_load_matrix(const flute_checkpoint* checkpoint, flute_device device, flute_dtype dtype,
                                          const char* const* layers, int32_t layer_count, flute_threads* threads,
                                          flute_matrix** matrix) {
  return guard(__func__, [&] {
    require(checkpoint, "checkpoint");
    require(layers, "layers");
    require(matrix, "matrix");
    if (layer_count < 1 || layer_count > 4) {
      fail(ErrorCode::kInvalidArgument, "layer_count: expected 1..4, found {}", layer_count);
    }
    std::vector<PackedView> views;
    views.reserve(static_cast<size_t>(layer_count));
    for (int32_t i = 0; i < layer_count; ++i) {
      require(layers[i], fmt::format("layers[{}]", i));
      views.push_back(checkpoint->checkpoint.packed_layer(layers[i]));
    }
    *matrix = make_handle<flute_matrix>(
        Matrix::from_packed(to_device(device), views, {to_dtype(dtype, "dtype"), to_pool(threads)}));
  });
}

}  // extern "C"
