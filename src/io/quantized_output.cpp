#include "io/quantized_output.hpp"

#include "base/fail.hpp"
#include "io/streaming.hpp"

namespace flute::io {

QuantizedOutput::QuantizedOutput(const Checkpoint& source, const std::filesystem::path& target,
                                 const QuantizeOptions& options)
    : source_(source),
      codebooks_(options.codebook),
      scale_dtype_(options.scale_dtype),
      plan_(make_plan(source, options, codebooks_)),
      folder_(source, target, options.overwrite) {
  for (const PlannedShard& shard : plan_.shards) {
    std::vector<TensorPlan> written;
    for (const PlannedTensor& tensor : shard.tensors) {
      if (tensor.is_quantized()) places_.emplace(tensor.prefix, Place{&tensor, writers_.size(), written.size()});
      for (TensorPlan& one : written_tensors(tensor, scale_dtype_)) written.push_back(std::move(one));
    }
    writers_.push_back(folder_.start_shard(*shard.source, written));
  }
}

const PlannedTensor* QuantizedOutput::find(std::string_view prefix) const {
  const auto found = places_.find(prefix);
  return found == places_.end() ? nullptr : found->second.planned;
}

std::vector<std::string> QuantizedOutput::layers() const {
  std::vector<std::string> names;
  for (const PlannedShard& shard : plan_.shards) {
    for (const PlannedTensor& tensor : shard.tensors) {
      if (tensor.is_quantized()) names.push_back(tensor.prefix);
    }
  }
  return names;
}

Codebook QuantizedOutput::make_codebook(const PlannedTensor& planned, const void* weight, DType dtype,
                                        ThreadPool* threads) const {
  if (!codebooks_.is_fitted()) return codebooks_.make(planned.layer.bits, planned.prefix);
  return fit_kmeans_codebook(weight, dtype, planned.source->shape[0], planned.source->shape[1], planned.layer.bits,
                             planned.layer.group_size, threads);
}

float QuantizedOutput::max_magnitude(const Codebook& codebook) const {
  return codebook_max_magnitude(codebook, codebooks_.is_int());
}

void QuantizedOutput::write(const PlannedTensor& planned, const PackedMatrix& matrix) {
  const Place& place = places_.find(planned.prefix)->second;
  SafetensorsWriter& writer = writers_[place.shard];
  writer.write(place.index, std::as_bytes(std::span(matrix.codes)));
  writer.write(place.index + 1, matrix.scales);
  writer.write(place.index + 2, std::as_bytes(std::span(matrix.codebook)));
}

void QuantizedOutput::replace(std::string_view name, std::vector<std::byte> data) {
  replaced_.insert_or_assign(std::string(name), std::move(data));
}

CheckpointReport QuantizedOutput::finish(const std::function<void(std::string_view what)>& progress) {
  const Progress observer = [&](int64_t, int64_t, std::string_view what) {
    if (progress) progress(what);
  };
  Meter meter(observer, 0);
  for (size_t i = 0; i < plan_.shards.size(); ++i) {
    size_t index = 0;
    for (const PlannedTensor& tensor : plan_.shards[i].tensors) {
      const auto replaced = replaced_.find(tensor.source->name);
      if (!tensor.is_quantized() && replaced != replaced_.end()) {
        writers_[i].write(index, replaced->second);
      } else if (!tensor.is_quantized()) {
        copy_tensor(*tensor.source, writers_[i], index, meter);
      }
      index += tensor.is_quantized() ? 3 : 1;
    }
    writers_[i].finish();
  }
  folder_.commit(quantized_config(source_, plan_));
  return planned_report(plan_, scale_dtype_);
}

}  // namespace flute::io
