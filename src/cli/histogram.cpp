#include "cli/histogram.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>

#include "flute/dtype.hpp"
#include "io/safetensors.hpp"

namespace flute::cli {
namespace {

constexpr size_t kBins = 120;
constexpr int64_t kLayers = 16;
constexpr int64_t kWeightsOfLayer = 65536;

/// Counts the normalised weights of some rows; returns what a table value is multiplied by to lie on the same axis:
/// a scale over its group's largest magnitude, which is the same for all groups but for rounding.
double count_weights(const PackedView& layer, const io::TensorView& original, DType dtype,
                     std::vector<double>& counts) {
  const int64_t group_size = layer.group_size < 0 ? layer.k : layer.group_size;
  const int64_t rows = std::clamp<int64_t>(kWeightsOfLayer / layer.k, 1, layer.n);
  std::vector<float> row(static_cast<size_t>(layer.k));
  double scales = 0, magnitudes = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t index = i * layer.n / rows;
    const std::byte* const data = original.data.data() + static_cast<size_t>(index * layer.k) * dtype_size(dtype);
    convert_to_f32(data, dtype, row.data(), row.size());
    for (int64_t group = 0; group < layer.groups(); ++group) {
      const auto begin = row.begin() + group * group_size;
      const auto end = row.begin() + std::min(layer.k, (group + 1) * group_size);
      float magnitude = 0;
      for (auto weight = begin; weight != end; ++weight) magnitude = std::max(magnitude, std::abs(*weight));
      if (!(magnitude > 0) || !std::isfinite(magnitude)) continue;
      magnitudes += static_cast<double>(magnitude);
      const auto scale_index = static_cast<size_t>(index * layer.groups() + group);
      scales += std::abs(static_cast<double>(load_as_f32(layer.scales, layer.scale_dtype, scale_index)));
      for (auto weight = begin; weight != end; ++weight) {
        const double position = (static_cast<double>(*weight / magnitude) - WeightHistogram::kLow) /
                                (WeightHistogram::kHigh - WeightHistogram::kLow);
        ++counts[std::min(static_cast<size_t>(position * kBins), kBins - 1)];
      }
    }
  }
  return magnitudes > 0 ? scales / magnitudes : 0;
}

/// Equal but for the rounding of scales, which shifts a table a little from layer to layer?
bool same_table(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::abs(a[i] - b[i]) > 1e-3) return false;
  }
  return true;
}

}  // namespace

WeightHistogram weight_histogram(const io::Checkpoint& quantized, const io::Checkpoint& original) {
  WeightHistogram histogram;
  std::vector<double> counts(kBins, 0.0);
  const std::vector<std::string>& layers = quantized.quantized_layers();
  const auto total = static_cast<int64_t>(layers.size());
  for (int64_t i = 0; i < std::min(kLayers, total); ++i) {
    const std::string& name = layers[static_cast<size_t>(i * total / std::min(kLayers, total))];
    const PackedView layer = quantized.packed_layer(name);
    const io::TensorView* const tensor = original.find(name + ".weight");
    if (tensor == nullptr || tensor->shape != std::vector<int64_t>{layer.n, layer.k} || layer.n == 0) continue;
    const DType dtype = io::float_dtype(*tensor, original.file_of(tensor->name));
    const double factor = count_weights(layer, *tensor, dtype, counts);
    std::vector<double> table;
    for (const float value : layer.codebook.first(size_t{1} << layer.bits)) {
      table.push_back(static_cast<double>(value) * factor);
    }
    std::sort(table.begin(), table.end());
    const bool known = std::any_of(histogram.tables.begin(), histogram.tables.end(),
                                   [&table](const auto& other) { return same_table(other, table); });
    if (!known) histogram.tables.push_back(std::move(table));
    ++histogram.layers;
  }
  double sum = 0;
  for (const double count : counts) sum += count;
  for (const double count : counts) histogram.density.push_back(sum > 0 ? count / sum : 0);
  return histogram;
}

}  // namespace flute::cli
