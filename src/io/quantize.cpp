#include <utility>

#include "base/fail.hpp"
#include "flute/threads.hpp"
#include "io/output_folder.hpp"
#include "io/pipelines.hpp"
#include "io/quantization_plan.hpp"
#include "io/streaming.hpp"

namespace flute::io {
namespace {

class Quantizer {
 public:
  Quantizer(const QuantizeOptions& options, const CodebookSource& codebooks, ThreadPool* threads, Meter& meter)
      : options_(options), codebooks_(codebooks), threads_(threads), meter_(meter) {}

  /// Writes codes, scales and codebook as tensors `index`, `index + 1` and `index + 2`.
  void run(const PlannedTensor& planned, const SafetensorsFile& file, SafetensorsWriter& writer, size_t index) {
    try {
      write(planned, float_dtype(*planned.source, file.path()), writer, index);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kInvalidArgument) throw;
      fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': {}", file.path().string(), printable(planned.source->name),
           error.what());
    }
  }

 private:
  void write(const PlannedTensor& planned, DType dtype, SafetensorsWriter& writer, size_t index) {
    const TensorView& tensor = *planned.source;
    const int64_t n = tensor.shape[0];
    const int64_t k = tensor.shape[1];
    const auto [bits, group_size, label] = planned.layer;
    const void* const weight = tensor.data.data();
    const Codebook codebook = codebooks_.is_fitted()
                                  ? fit_kmeans_codebook(weight, dtype, n, k, bits, group_size, threads_)
                                  : codebooks_.make(bits, planned.prefix);
    const RtnOptions rtn{group_size, options_.scale_dtype, codebook_max_magnitude(codebook, codebooks_.is_int()),
                         options_.clip};
    if (options_.method == "mse") {
      const PackedMatrix matrix = quantize_mse(weight, dtype, n, k, codebook, rtn, threads_);
      writer.write(index, std::as_bytes(std::span(matrix.codes)));
      writer.write(index + 1, matrix.scales);
      writer.write(index + 2, std::as_bytes(std::span(matrix.codebook)));
      release_pages(tensor.data);
      meter_.add(static_cast<int64_t>(tensor.data.size()), planned.prefix);
      return;
    }
    writer.write(index + 2, std::as_bytes(std::span(codebook.values)));
    const int64_t row_bytes = k * static_cast<int64_t>(dtype_size(dtype));
    PackedMatrix chunk = allocate_packed(std::clamp<int64_t>(kChunkBytes / row_bytes, 1, n), k, group_size,
                                         options_.scale_dtype, codebook);
    const auto codes_per_row = static_cast<size_t>(chunk.view().words_per_row()) * sizeof(uint32_t);
    const auto scales_per_row = static_cast<size_t>(chunk.view().groups()) * dtype_size(options_.scale_dtype);
    for_row_chunks(tensor, n, row_bytes, meter_, planned.prefix, [&](int64_t begin, int64_t end) {
      quantize_chunk(weight, dtype, begin, end, codebook, rtn, chunk);
      const auto rows = static_cast<size_t>(end - begin);
      writer.write(index, std::as_bytes(std::span(chunk.codes)).first(rows * codes_per_row));
      writer.write(index + 1, std::span(chunk.scales).first(rows * scales_per_row));
    });
  }

  void quantize_chunk(const void* weight, DType dtype, int64_t begin, int64_t end, const Codebook& codebook,
                      const RtnOptions& rtn, PackedMatrix& chunk) const {
    const int64_t rows = std::max<int64_t>(1, 65536 / chunk.k);  // a block for one thread: about a millisecond
    try {
      parallel_for(threads_, (end - begin + rows - 1) / rows, [&](int64_t block) {
        const int64_t first = begin + block * rows;
        quantize_rtn_rows(weight, dtype, first, std::min(first + rows, end), codebook, rtn, chunk, begin);
      });
    } catch (const Error&) {
      quantize_rtn_rows(weight, dtype, begin, end, codebook, rtn, chunk,
                        begin);  // in order: names the first bad weight
      throw;
    }
  }

  const QuantizeOptions& options_;
  const CodebookSource& codebooks_;
  ThreadPool* threads_;
  Meter& meter_;
};

void check_no_target(const QuantizeOptions& options) {
  if (!options.target) return;
  fail(ErrorCode::kInvalidArgument,
       "target bits: expected a quantizer that calibrates, which measures what layers cost");
}

}  // namespace

CheckpointReport plan_quantization(const std::filesystem::path& source_path, const QuantizeOptions& options) {
  check_no_target(options);
  const CodebookSource codebooks(options.codebook);
  const Checkpoint source = Checkpoint::open(source_path);
  return planned_report(make_plan(source, options, codebooks), options.scale_dtype);
}

CheckpointReport quantize_checkpoint(const std::filesystem::path& source_path, const std::filesystem::path& target,
                                     const QuantizeOptions& options, ThreadPool* threads, const Progress& progress) {
  if (options.method != "rtn" && options.method != "mse") {
    fail(ErrorCode::kInvalidArgument, "method: expected rtn or mse, which need no calibration text, found '{}'",
         printable(options.method));
  }
  check_no_target(options);
  const CodebookSource codebooks(options.codebook);
  const Checkpoint source = Checkpoint::open(source_path);
  const QuantizationPlan plan = make_plan(source, options, codebooks);
  OutputFolder folder(source, target, options.overwrite);

  int64_t total = 0;
  for (const PlannedShard& shard : plan.shards) {
    for (const PlannedTensor& tensor : shard.tensors) total += static_cast<int64_t>(tensor.source->data.size());
  }
  Meter meter(progress, total);
  Quantizer quantizer(options, codebooks, threads, meter);
  for (const PlannedShard& shard : plan.shards) {
    std::vector<TensorPlan> written;
    for (const PlannedTensor& tensor : shard.tensors) {
      for (TensorPlan& one : written_tensors(tensor, options.scale_dtype)) written.push_back(std::move(one));
    }
    SafetensorsWriter writer = folder.start_shard(*shard.source, written);
    size_t index = 0;
    for (const PlannedTensor& tensor : shard.tensors) {
      if (tensor.is_quantized()) {
        quantizer.run(tensor, *shard.source, writer, index);
        index += 3;
      } else {
        copy_tensor(*tensor.source, writer, index, meter);
        index += 1;
      }
    }
    writer.finish();
  }
  folder.commit(quantized_config(source, plan));
  return planned_report(plan, options.scale_dtype);
}

}  // namespace flute::io
