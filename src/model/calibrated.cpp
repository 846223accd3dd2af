#include "model/calibrated.hpp"

#include <algorithm>
#include <array>
#include <set>
#include <utility>
#include <vector>

#include "base/fail.hpp"
#include "io/files.hpp"
#include "io/quantized_output.hpp"
#include "model/blocks.hpp"
#include "model/model.hpp"
#include "model/tokenizer.hpp"
#include "model/unicode.hpp"

namespace flute::model {
namespace {

constexpr int64_t kWindow = 512;

/// Windows of `length` tokens, as many as there are up to `wanted` tokens, evenly over the text.
std::vector<int32_t> calibration_ids(const Blocks& blocks, const std::filesystem::path& folder,
                                     const CalibrationText& calibration, int64_t length) {
  if (calibration.tokens < length) {
    fail(ErrorCode::kInvalidArgument, "calibration: expected at least one window of {} tokens, found {}", length,
         calibration.tokens);
  }
  if (!is_well_formed(calibration.text)) {
    fail(ErrorCode::kInvalidArgument, "{}: expected a text in UTF-8, found other bytes", calibration.name);
  }
  const Tokenizer tokenizer = Tokenizer::load(folder / "tokenizer.json");
  const std::vector<int32_t> ids = encode_documents(tokenizer, blocks.config, calibration.text);
  blocks.check(ids);
  const int64_t there = static_cast<int64_t>(ids.size()) / length;
  if (there == 0) {
    fail(ErrorCode::kInvalidArgument, "{}: expected at least one window of {} tokens, found {} tokens",
         calibration.name, length, ids.size());
  }
  const int64_t windows = std::min(there, calibration.tokens / length);
  std::vector<int32_t> chosen;
  for (int64_t i = 0; i < windows; ++i) {
    const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(i * there / windows * length);
    chosen.insert(chosen.end(), begin, begin + static_cast<std::ptrdiff_t>(length));
  }
  return chosen;
}

/// The calibration tokens on their way through the blocks.
class Calibration {
 public:
  Calibration(const std::filesystem::path& source, const std::filesystem::path& target,
              const io::QuantizeOptions& options, const CalibrationText& text, ThreadPool* threads,
              const CalibrationProgress& progress)
      : options_(options),
        threads_(threads),
        progress_(progress),
        blocks_(source, threads),
        output_(blocks_.checkpoint, target, options),
        length_(std::min(kWindow, blocks_.config.max_position_embeddings)),
        ids_(calibration_ids(blocks_, blocks_.checkpoint.folder(), text, length_)),
        windows_(static_cast<int64_t>(ids_.size()) / length_),
        activations_(blocks_.config, length_),
        cache_(one_layer(blocks_.config), length_),
        rope_table_(blocks_.rope, 0, length_) {
    check_layers();
  }

  CalibratedReport run() {
    const int64_t width = blocks_.config.hidden_size;
    hidden_ = Activations::allocate(windows_ * length_ * width);
    for (int64_t i = 0; i < windows_; ++i) {
      const auto begin = static_cast<size_t>(i * length_);
      blocks_.embed(std::span(ids_).subspan(begin, static_cast<size_t>(length_)), hidden_.get() + i * length_ * width);
    }
    for (int64_t layer = 0; layer < blocks_.config.num_layers; ++layer) run_block(layer);
    run_head();
    CalibratedReport report;
    report.checkpoint = output_.finish([this](std::string_view what) { report_progress(0, what); });
    report.tokens = windows_ * length_;
    return report;
  }

 private:
  static io::ModelConfig one_layer(io::ModelConfig config) {
    config.num_layers = 1;
    return config;
  }

  static std::array<std::vector<std::string>, 4> layer_names(int64_t layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    return {{{prefix + "self_attn.q_proj", prefix + "self_attn.k_proj", prefix + "self_attn.v_proj"},
             {prefix + "self_attn.o_proj"},
             {prefix + "mlp.gate_proj", prefix + "mlp.up_proj"},
             {prefix + "mlp.down_proj"}}};
  }

  void check_layers() {
    std::set<std::string> known = {"lm_head"};
    for (int64_t layer = 0; layer < blocks_.config.num_layers; ++layer) {
      for (const auto& names : layer_names(layer)) known.insert(names.begin(), names.end());
    }
    for (const std::string& name : output_.layers()) {
      if (!known.contains(name)) {
        fail(ErrorCode::kInvalidArgument,
             "layer '{}': expected a linear layer of a block or lm_head, which alone have inputs to calibrate with: "
             "leave it out with --exclude",
             io::printable(name));
      }
      total_ += output_.find(name)->source->shape[0] * output_.find(name)->source->shape[1];
    }
  }

  void report_progress(int64_t done, std::string_view what) {
    done_ += done;
    if (progress_) progress_(done_, total_, what);
  }

  /// Quantizes those of `names` that the plan has, given `collect`, which adds all their inputs to the moments.
  template <typename Collect>
  void quantize(const std::vector<std::string>& names, int64_t k, const Collect& collect) {
    const bool any = std::any_of(names.begin(), names.end(), [&](const auto& name) { return output_.find(name); });
    if (!any) return;
    InputMoments moments(k);
    collect(moments);
    try {
      const CalibratedQuantizer quantizer(std::move(moments), threads_);
      for (const std::string& name : names) {
        if (const io::PlannedTensor* planned = output_.find(name)) quantize_layer(quantizer, *planned);
      }
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kInvalidArgument) throw;
      fail(ErrorCode::kInvalidArgument, "layer '{}': {}", names.front(), error.what());
    }
  }

  void quantize_layer(const CalibratedQuantizer& quantizer, const io::PlannedTensor& planned) {
    report_progress(0, planned.prefix);
    const io::TensorView& tensor = *planned.source;
    const DType dtype = io::float_dtype(tensor, blocks_.checkpoint.file_of(tensor.name));
    const Codebook codebook = output_.make_codebook(planned, threads_);
    const CalibratedOptions options{planned.layer.group_size, options_.scale_dtype, output_.max_magnitude(codebook),
                                    options_.clip};
    const int64_t n = tensor.shape[0];
    PackedMatrix matrix = options_.method == "gptq" ? quantizer.gptq(tensor.data.data(), dtype, n, codebook, options)
                                                    : quantizer.ldlq(tensor.data.data(), dtype, n, codebook, options);
    output_.write(planned, matrix);
    io::release_pages(tensor.data);
    report_progress(n * tensor.shape[1], planned.prefix);
    quantized_.insert_or_assign(planned.prefix, std::move(matrix));
  }

  /// `step` with each window's hidden rows in activations_, which are stored again where `keep`.
  template <typename Step>
  void for_windows(bool keep, std::string_view what, const Step& step) {
    const int64_t count = length_ * blocks_.config.hidden_size;
    for (int64_t i = 0; i < windows_; ++i) {
      report_progress(0, what);
      std::copy_n(hidden_.get() + i * count, count, activations_.hidden.get());
      step();
      if (keep) std::copy_n(activations_.hidden.get(), count, hidden_.get() + i * count);
    }
  }

  void run_block(int64_t layer) {
    const io::ModelConfig& config = blocks_.config;
    const int64_t m = length_, width = config.hidden_size, mlp_width = config.intermediate_size;
    const auto [qkv, output, gate_up, down] = layer_names(layer);
    Activations& a = activations_;
    Block block = blocks_.read_block(layer);
    const auto attend = [&] {
      blocks_.norm_for_attention(block, m, a);
      cache_.clear();
      blocks_.attend_rows(block, layer, 0, m, rope_table_, cache_, a);
    };
    quantize(qkv, width, [&](InputMoments& moments) {
      for_windows(false, "inputs of attention", [&] {
        blocks_.norm_for_attention(block, m, a);
        moments.add(a.normed.get(), width, m, threads_);
      });
    });
    block = blocks_.read_block(layer, &quantized_);
    const int64_t attention_width = config.num_heads * config.head_dim;
    quantize(output, attention_width, [&](InputMoments& moments) {
      for_windows(false, "outputs of attention", [&] {
        attend();
        moments.add(a.attention.get(), attention_width, m, threads_);
      });
    });
    block = blocks_.read_block(layer, &quantized_);
    for_windows(true, "attention", [&] {
      attend();
      blocks_.add_attention(block, m, a);
    });
    quantize(gate_up, width, [&](InputMoments& moments) {
      for_windows(false, "inputs of the MLP", [&] {
        blocks_.norm_for_mlp(block, m, a);
        moments.add(a.normed.get(), width, m, threads_);
      });
    });
    block = blocks_.read_block(layer, &quantized_);
    quantize(down, mlp_width, [&](InputMoments& moments) {
      for_windows(false, "activations of the MLP", [&] {
        blocks_.norm_for_mlp(block, m, a);
        blocks_.activate_mlp(block, m, a);
        moments.add(a.gate_up.get(), 2 * mlp_width, m, threads_);
      });
    });
    block = blocks_.read_block(layer, &quantized_);
    for_windows(true, "MLP", [&] {
      blocks_.norm_for_mlp(block, m, a);
      blocks_.activate_mlp(block, m, a);
      blocks_.add_mlp(block, m, a);
    });
    quantized_.clear();
  }

  void run_head() {
    const std::vector<float> norm = blocks_.read_norm("model.norm");
    const int64_t width = blocks_.config.hidden_size;
    quantize({"lm_head"}, width, [&](InputMoments& moments) {
      for_windows(false, "inputs of the head", [&] {
        blocks_.norm_rows(activations_.hidden.get(), norm, length_, activations_.normed.get());
        moments.add(activations_.normed.get(), width, length_, threads_);
      });
    });
  }

  const io::QuantizeOptions& options_;
  ThreadPool* threads_;
  const CalibrationProgress& progress_;
  Blocks blocks_;
  io::QuantizedOutput output_;
  int64_t length_;  // of a window
  std::vector<int32_t> ids_;
  int64_t windows_;
  Activations activations_;  // of one window
  KvCache cache_;
  RopeTable rope_table_;
  std::unique_ptr<float[]> hidden_;  // [windows, length, hidden_size], what the block in hand gets
  PackedLayers quantized_;           // of the block in hand
  int64_t done_ = 0, total_ = 0;     // weights
};

}  // namespace

CalibratedReport quantize_calibrated(const std::filesystem::path& source, const std::filesystem::path& target,
                                     const io::QuantizeOptions& options, const CalibrationText& calibration,
                                     ThreadPool* threads, const CalibrationProgress& progress) {
  if (options.method != "gptq" && options.method != "ldlq") {
    fail(ErrorCode::kInvalidArgument, "method: expected gptq or ldlq, found '{}'", io::printable(options.method));
  }
  return Calibration(source, target, options, calibration, threads, progress).run();
}

}  // namespace flute::model
