#include <cmath>

#include "base/fail.hpp"
#include "flute/threads.hpp"
#include "io/output_folder.hpp"
#include "io/pipelines.hpp"
#include "io/streaming.hpp"

namespace flute::io {
namespace {

bool is_float(const TensorView& tensor) {
  return tensor.dtype == "F32" || tensor.dtype == "F16" || tensor.dtype == "BF16";
}

/// One tensor of the plain checkpoint.
struct Output {
  const TensorView* source = nullptr;  ///< for a quantized layer its codes
  std::string prefix;                  ///< of a quantized layer, else empty
  TensorPlan plan;
};

std::vector<Output> plan_shard(const Checkpoint& checkpoint, const SafetensorsFile& shard, DType dtype) {
  const std::string dtype_text(safetensors_name(dtype));
  std::vector<Output> outputs;
  for (const TensorView& tensor : shard.tensors()) {
    const std::string prefix(checkpoint.layer_of(tensor.name));
    if (prefix.empty()) {
      outputs.push_back({&tensor, "", {tensor.name, is_float(tensor) ? dtype_text : tensor.dtype, tensor.shape}});
    } else if (tensor.name == prefix + ".weight_packed") {
      const PackedView view = checkpoint.packed_layer(prefix, false);
      outputs.push_back({&tensor, prefix, {prefix + ".weight", dtype_text, {view.n, view.k}}});
    }
  }
  return outputs;
}

/// Writes tensors as `dtype`. A finite value may be too large for fp16: that is an error, not an infinity.
class Converter {
 public:
  Converter(DType dtype, ThreadPool* threads, Meter& meter) : dtype_(dtype), threads_(threads), meter_(meter) {}

  void write_layer(const Checkpoint& checkpoint, const Output& output, SafetensorsWriter& writer, size_t index) {
    const PackedView view = checkpoint.packed_layer(output.prefix);
    write(output, view.n, view.k, writer, index, checkpoint,
          [&](int64_t begin, int64_t end, std::byte* out) { dequantize_rows(view, begin, end, dtype_, out); });
  }

  void write_plain(const Checkpoint& checkpoint, const Output& output, SafetensorsWriter& writer, size_t index) {
    if (output.source->dtype == output.plan.dtype) return copy_tensor(*output.source, writer, index, meter_);
    const DType from = float_dtype(*output.source, checkpoint.file_of(output.source->name));
    const std::byte* data = output.source->data.data();
    const auto count = static_cast<int64_t>(output.source->data.size() / dtype_size(from));
    // Its shape does not matter: as one column.
    write(output, count, 1, writer, index, checkpoint, [&](int64_t begin, int64_t end, std::byte* out) {
      std::vector<float> values(static_cast<size_t>(end - begin));
      convert_to_f32(data + static_cast<size_t>(begin) * dtype_size(from), from, values.data(), values.size());
      convert_from_f32(values.data(), out, dtype_, values.size());
    });
  }

 private:
  template <typename Convert>
  void write(const Output& output, int64_t n, int64_t k, SafetensorsWriter& writer, size_t index,
             const Checkpoint& checkpoint, const Convert& convert) {
    const auto row_bytes = static_cast<size_t>(k) * dtype_size(dtype_);
    const int64_t chunk =
        std::clamp<int64_t>(kChunkBytes / static_cast<int64_t>(row_bytes), 1, std::max<int64_t>(n, 1));
    const int64_t rows = std::max<int64_t>(1, 65536 / k);
    buffer_.resize(static_cast<size_t>(chunk) * row_bytes);
    for (int64_t begin = 0; begin < n; begin += chunk) {
      const int64_t end = std::min(n, begin + chunk);
      parallel_for(threads_, (end - begin + rows - 1) / rows, [&](int64_t block) {
        const int64_t first = begin + block * rows;
        std::byte* const out = buffer_.data() + static_cast<size_t>(first - begin) * row_bytes;
        convert(first, std::min(end, first + rows), out);
      });
      const auto bytes = std::span(buffer_).first(static_cast<size_t>(end - begin) * row_bytes);
      if (dtype_ == DType::kF16) check_finite(bytes, output, checkpoint);
      writer.write(index, bytes);
      meter_.add(static_cast<int64_t>(bytes.size()), output.plan.name);
    }
  }

  static void check_finite(std::span<const std::byte> bytes, const Output& output, const Checkpoint& checkpoint) {
    for (size_t i = 0; i < bytes.size() / 2; ++i) {
      if (std::isfinite(load_as_f32(bytes.data(), DType::kF16, i))) continue;
      fail(ErrorCode::kInvalidArgument,
           "{}: tensor '{}': expected values within fp16's 65504, found larger ones: "
           "write bf16 or fp32",
           checkpoint.file_of(output.source->name).string(), printable(output.plan.name));
    }
  }

  DType dtype_;
  ThreadPool* threads_;
  Meter& meter_;
  std::vector<std::byte> buffer_;
};

nlohmann::ordered_json plain_config(const Checkpoint& source, DType dtype) {
  nlohmann::ordered_json config = source.config();
  config.erase("quantization_config");
  const char* name = dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16";
  if (config.contains("dtype")) config["dtype"] = name;
  if (config.contains("torch_dtype") || !config.contains("dtype")) config["torch_dtype"] = name;
  return config;
}

}  // namespace

void dequantize_checkpoint(const std::filesystem::path& source_path, const std::filesystem::path& target, DType dtype,
                           bool overwrite, ThreadPool* threads, const Progress& progress) {
  const Checkpoint source = Checkpoint::open(source_path);
  if (!source.is_quantized()) {
    fail(ErrorCode::kInvalidArgument, "{}: expected a checkpoint in flute's format, found none in its config.json",
         source.path().string());
  }
  std::vector<std::vector<Output>> shards;
  int64_t total = 0;
  for (const SafetensorsFile& shard : source.shards()) {
    shards.push_back(plan_shard(source, shard, dtype));
    for (const Output& output : shards.back()) total += output.plan.bytes();
  }
  OutputFolder folder(source, target, overwrite);
  Meter meter(progress, total);
  Converter converter(dtype, threads, meter);
  for (size_t i = 0; i < shards.size(); ++i) {
    std::vector<TensorPlan> plans;
    for (const Output& output : shards[i]) plans.push_back(output.plan);
    SafetensorsWriter writer = folder.start_shard(source.shards()[i], plans);
    for (size_t index = 0; index < shards[i].size(); ++index) {
      const Output& output = shards[i][index];
      if (output.prefix.empty()) {
        converter.write_plain(source, output, writer, index);
      } else {
        converter.write_layer(source, output, writer, index);
      }
    }
    writer.finish();
  }
  folder.commit(plain_config(source, dtype));
}

}  // namespace flute::io
