#include "model/target_bits.hpp"

#include <algorithm>
#include <cmath>

#include "base/fail.hpp"
#include "io/files.hpp"
#include "io/quantization_plan.hpp"
#include "model/allocation.hpp"
#include "model/sensitivity.hpp"

namespace flute::model {
namespace {

constexpr io::LayerFormat kProbe = {3, 128};
constexpr int64_t kTokens = 2048;
constexpr int64_t kRows = 64;  // of a layer, that errors are measured on

std::vector<io::LayerFormat> formats_of(const io::TargetBits& target) {
  std::vector<io::LayerFormat> result;
  for (const int bits : target.widths) {
    for (const int64_t group_size : target.group_sizes) result.push_back({bits, group_size});
  }
  return result;
}

class Chooser {
 public:
  Chooser(const Blocks& blocks, const io::QuantizeOptions& options)
      : blocks_(blocks),
        options_(options),
        formats_(formats_of(*options.target)),
        plan_(io::make_plan(blocks.checkpoint, options, io::CodebookSource(options.codebook))) {
    for (int64_t layer = 0; layer < blocks.config.num_layers; ++layer) {
      for (const LayerGroup& group : layer_groups(blocks.config, layer)) add(group);
    }
    add(head_group(blocks.config));
  }

  std::vector<ChosenFormat> run(const CalibrationText& calibration, const std::function<void(double)>& progress) {
    std::vector<std::vector<Alternative>> alternatives;
    for (const LayerGroup& group : groups_) {
      std::vector<Alternative>& of_group = alternatives.emplace_back();
      for (const io::LayerFormat& format : formats_) of_group.push_back({bytes(group, format), 0});
    }
    const int64_t budget = check_budget(alternatives);

    CalibrationText text = calibration;
    text.tokens = std::min(kTokens, calibration.tokens);
    const std::vector<double> measured = measure_divergence(
        blocks_, calibration_ids(blocks_, text), calibration_window(blocks_.config), groups_,
        [&](const LayerGroup& group) { return rounded(group); },
        [&](double share) {
          if (progress) progress(0.5 * share);
        });
    for (size_t i = 0; i < groups_.size(); ++i) {
      if (!std::isfinite(measured[i])) {
        fail(ErrorCode::kInvalidArgument, "layer '{}': expected finite activations, found a divergence of {}",
             groups_[i].names.front(), measured[i]);
      }
      const double probe_error = squared_error(groups_[i], kProbe);
      const double factor = probe_error > 0 ? std::max(measured[i], 0.0) / probe_error : 0.0;
      for (size_t a = 0; a < formats_.size(); ++a)
        alternatives[i][a].loss = factor * squared_error(groups_[i], formats_[a]);
      if (progress) progress(0.5 / static_cast<double>(groups_.size()));
    }
    const std::vector<size_t> chosen = allocate_bytes(alternatives, budget);
    std::vector<ChosenFormat> result;
    for (size_t i = 0; i < groups_.size(); ++i) {
      result.push_back({groups_[i].names, formats_[chosen[i]], alternatives[i][chosen[i]].loss});
    }
    return result;
  }

 private:
  /// Those of the group's layers that are quantized.
  void add(LayerGroup group) {
    std::erase_if(group.names, [&](const std::string& name) { return find(name) == nullptr; });
    if (!group.names.empty()) groups_.push_back(std::move(group));
  }

  const io::PlannedTensor* find(std::string_view name) const {
    for (const io::PlannedShard& shard : plan_.shards) {
      for (const io::PlannedTensor& tensor : shard.tensors) {
        if (tensor.prefix == name) return &tensor;
      }
    }
    return nullptr;
  }

  int64_t bytes(const LayerGroup& group, const io::LayerFormat& format) const {
    int64_t sum = 0;
    for (const std::string& name : group.names) {
      io::PlannedTensor planned = *find(name);
      planned.layer.bits = format.bits;
      planned.layer.group_size = format.group_size;
      for (const io::TensorPlan& written : io::written_tensors(planned, options_.scale_dtype)) sum += written.bytes();
    }
    return sum;
  }

  /// What the target leaves for all layers; there has to be a choice that keeps to it.
  int64_t check_budget(const std::vector<std::vector<Alternative>>& alternatives) const {
    double weights = 0, least = 0;
    for (size_t i = 0; i < groups_.size(); ++i) {
      for (const std::string& name : groups_[i].names) {
        const io::TensorView& tensor = *find(name)->source;
        weights += static_cast<double>(tensor.shape[0]) * static_cast<double>(tensor.shape[1]);
      }
      int64_t smallest = alternatives[i].front().bytes;
      for (const Alternative& one : alternatives[i]) smallest = std::min(smallest, one.bytes);
      least += static_cast<double>(smallest);
    }
    const double budget = options_.target->bits * weights / 8;
    if (!(budget >= least)) {
      fail(ErrorCode::kInvalidArgument,
           "target bits: expected at least the {:.3f} bits a weight that the smallest formats take, found {}",
           8 * least / weights, options_.target->bits);
    }
    return static_cast<int64_t>(budget);
  }

  PackedMatrix quantize(const void* weight, DType dtype, int64_t n, int64_t k, const io::LayerFormat& format) const {
    const RtnOptions rtn{format.group_size, options_.scale_dtype};
    return quantize_mse(weight, dtype, n, k, named_codebook("nf", format.bits), rtn, blocks_.threads);
  }

  PackedLayers rounded(const LayerGroup& group) const {
    PackedLayers result;
    for (const std::string& name : group.names) {
      const io::TensorView& tensor = *find(name)->source;
      const DType dtype = io::float_dtype(tensor, blocks_.checkpoint.file_of(tensor.name));
      result.emplace(name, quantize(tensor.data.data(), dtype, tensor.shape[0], tensor.shape[1], kProbe));
      io::release_pages(tensor.data);
    }
    return result;
  }

  /// Of the group's weights, as some of their rows have it.
  double squared_error(const LayerGroup& group, const io::LayerFormat& format) const {
    double sum = 0;
    for (const std::string& name : group.names) {
      const io::TensorView& tensor = *find(name)->source;
      const DType dtype = io::float_dtype(tensor, blocks_.checkpoint.file_of(tensor.name));
      const int64_t n = tensor.shape[0], k = tensor.shape[1], rows = std::min(n, kRows);
      std::vector<float> weight(static_cast<size_t>(rows * k)), quantized(weight.size());
      for (int64_t i = 0; i < rows; ++i) {
        const auto offset = static_cast<size_t>(i * n / rows * k) * dtype_size(dtype);
        convert_to_f32(tensor.data.data() + offset, dtype, weight.data() + i * k, static_cast<size_t>(k));
      }
      const PackedMatrix matrix = quantize(weight.data(), DType::kF32, rows, k, format);
      dequantize_rows(matrix.view(), 0, rows, DType::kF32, quantized.data());
      double error = 0;
      for (size_t i = 0; i < weight.size(); ++i) {
        const double difference = double{weight[i]} - double{quantized[i]};
        error += difference * difference;
      }
      sum += error * static_cast<double>(n) / static_cast<double>(rows);
    }
    return sum;
  }

  const Blocks& blocks_;
  const io::QuantizeOptions& options_;
  std::vector<io::LayerFormat> formats_;
  io::QuantizationPlan plan_;
  std::vector<LayerGroup> groups_;
};

}  // namespace

std::vector<ChosenFormat> choose_formats(const Blocks& blocks, const io::QuantizeOptions& options,
                                         const CalibrationText& calibration,
                                         const std::function<void(double share)>& progress) {
  return Chooser(blocks, options).run(calibration, progress);
}

}  // namespace flute::model
