#include <fmt/ranges.h>

#include <cmath>

#include "base/checked.hpp"
#include "base/fail.hpp"
#include "flute/threads.hpp"
#include "io/pipelines.hpp"
#include "io/report.hpp"
#include "io/streaming.hpp"

namespace flute::io {
namespace {

LayerReport quantized_layer(const Checkpoint& checkpoint, const std::string& prefix) {
  const PackedView view = checkpoint.packed_layer(prefix, false);
  LayerReport layer;
  layer.name = prefix;
  layer.quantized = true;
  layer.n = view.n;
  layer.k = view.k;
  layer.bits = view.bits;
  layer.group_size = view.group_size;
  layer.codebook = checkpoint.quantization()->layer(prefix).codebook;
  layer.bytes = static_cast<int64_t>(view.bytes());
  return layer;
}

/// A matrix of either kind, a few rows at a time, as fp32.
class Rows {
 public:
  Rows(const Checkpoint& checkpoint, const LayerReport& layer) : n_(layer.n), k_(layer.k) {
    if (layer.quantized) {
      packed_ = checkpoint.packed_layer(layer.name);
    } else {
      set_plain(checkpoint, layer.name);
    }
  }
  /// The original of `layer`: `name.weight`, or the tensor `name` itself. A head of its own may have been a tied one.
  static Rows original_of(const LayerReport& layer, const Checkpoint& original) {
    std::string name = layer.quantized ? layer.name + ".weight" : layer.name;
    if (name == "lm_head.weight" && original.find(name) == nullptr) name = "model.embed_tokens.weight";
    Rows rows(layer.n, layer.k);
    rows.set_plain(original, name);
    return rows;
  }

  void read(int64_t begin, int64_t end, float* out) const {
    if (plain_ == nullptr) {
      dequantize_rows(packed_, begin, end, DType::kF32, out);
    } else {
      const auto skipped = static_cast<size_t>(begin * k_) * dtype_size(dtype_);
      convert_to_f32(plain_->data.data() + skipped, dtype_, out, static_cast<size_t>((end - begin) * k_));
    }
  }

 private:
  Rows(int64_t n, int64_t k) : n_(n), k_(k) {}

  void set_plain(const Checkpoint& checkpoint, const std::string& name) {
    plain_ = &checkpoint.at(name);
    dtype_ = float_dtype(*plain_, checkpoint.file_of(name));
    if (plain_->shape != std::vector<int64_t>{n_, k_}) {
      fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': expected shape [{}, {}] to compare with, found [{}]",
           checkpoint.file_of(name).string(), printable(name), n_, k_, fmt::join(plain_->shape, ", "));
    }
  }

  int64_t n_, k_;
  PackedView packed_;
  const TensorView* plain_ = nullptr;
  DType dtype_ = DType::kF32;
};

/// ||A - B||_F / ||A||_F, A being the original; sums in double, in an order that no thread count changes.
double relative_error(const Rows& original, const Rows& other, int64_t n, int64_t k, ThreadPool* threads, Meter& meter,
                      const std::string& what) {
  const int64_t rows = std::max<int64_t>(1, 65536 / k);  // of a block: its two fp32 copies fit a core's cache
  const int64_t blocks_at_once = std::max<int64_t>(1, kChunkBytes / (rows * k * 4));
  double difference = 0;
  double norm = 0;
  for (int64_t begin = 0; begin < n; begin += rows * blocks_at_once) {
    const int64_t end = std::min(n, begin + rows * blocks_at_once);
    const int64_t blocks = (end - begin + rows - 1) / rows;
    std::vector<std::pair<double, double>> sums(static_cast<size_t>(blocks));
    parallel_for(threads, blocks, [&](int64_t block) {
      const int64_t first = begin + block * rows;
      const int64_t last = std::min(end, first + rows);
      const auto count = static_cast<size_t>((last - first) * k);
      std::vector<float> a(count), b(count);
      original.read(first, last, a.data());
      other.read(first, last, b.data());
      auto& [squares, total] = sums[static_cast<size_t>(block)];
      for (size_t i = 0; i < count; ++i) {
        const double delta = static_cast<double>(a[i]) - static_cast<double>(b[i]);
        squares += delta * delta;
        total += static_cast<double>(a[i]) * static_cast<double>(a[i]);
      }
    });
    for (const auto& [squares, total] : sums) {
      difference += squares;
      norm += total;
    }
    meter.add((end - begin) * k, what);
  }
  if (norm == 0) return difference == 0 ? 0 : INFINITY;
  return std::sqrt(difference / norm);
}

/// Is this a matrix whose error says something: a quantized layer, or in a plain checkpoint any float matrix?
bool is_compared(const LayerReport& layer, bool checkpoint_is_quantized) {
  const bool is_float = layer.codebook == "F32" || layer.codebook == "F16" || layer.codebook == "BF16";
  return layer.quantized || (!checkpoint_is_quantized && is_float && layer.n > 0 && layer.k > 0);
}

}  // namespace

LayerReport plain_layer(const TensorView& tensor) {
  LayerReport layer;
  layer.name = tensor.name;
  if (tensor.shape.size() == 2) {
    layer.n = tensor.shape[0];
    layer.k = tensor.shape[1];
  }
  layer.bits = safetensors_dtype_bits(tensor.dtype);
  layer.codebook = tensor.dtype;
  layer.bytes = static_cast<int64_t>(tensor.data.size());
  layer.elements = checked_product(tensor.shape).value_or(0);
  return layer;
}

void summarize(CheckpointReport& report) {
  const auto bits = [](int64_t bytes, int64_t elements) {
    return elements == 0 ? 0 : 8 * static_cast<double>(bytes) / static_cast<double>(elements);
  };
  int64_t quantized_bytes = 0;
  int64_t quantized_elements = 0;
  for (LayerReport& layer : report.layers) {
    if (layer.quantized) {
      layer.elements = layer.n * layer.k;
      quantized_bytes += layer.bytes;
      quantized_elements += layer.elements;
    }
    layer.bits_per_weight = bits(layer.bytes, layer.elements);
    report.bytes += layer.bytes;
    report.elements += layer.elements;
  }
  report.bits_per_weight = bits(report.bytes, report.elements);
  report.quantized_bits_per_weight = bits(quantized_bytes, quantized_elements);
}

CheckpointReport inspect_checkpoint(const std::filesystem::path& path,
                                    const std::optional<std::filesystem::path>& against, ThreadPool* threads,
                                    const Progress& progress) {
  const Checkpoint checkpoint = Checkpoint::open(path);
  CheckpointReport report;
  for (const SafetensorsFile& shard : checkpoint.shards()) {
    for (const TensorView& tensor : shard.tensors()) {
      const std::string prefix(checkpoint.layer_of(tensor.name));
      if (prefix.empty()) {
        report.layers.push_back(plain_layer(tensor));
      } else if (tensor.name == prefix + ".weight_packed") {
        report.layers.push_back(quantized_layer(checkpoint, prefix));
      }
    }
  }
  summarize(report);
  if (!against) return report;

  const Checkpoint original = Checkpoint::open(*against);
  if (checkpoint.is_quantized() && checkpoint.quantization()->method == "awq") return report;
  int64_t total = 0;
  for (const LayerReport& layer : report.layers) {
    if (is_compared(layer, checkpoint.is_quantized())) total += layer.elements;
  }
  Meter meter(progress, total);
  for (LayerReport& layer : report.layers) {
    if (!is_compared(layer, checkpoint.is_quantized())) continue;
    layer.relative_error = relative_error(Rows::original_of(layer, original), Rows(checkpoint, layer), layer.n, layer.k,
                                          threads, meter, layer.name);
  }
  return report;
}

}  // namespace flute::io
