#include "model/calibrated.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "base/fail.hpp"
#include "io/files.hpp"
#include "io/quantized_output.hpp"
#include "model/blocks.hpp"
#include "model/calibrated_blocks.hpp"
#include "model/folding.hpp"

namespace flute::model {
namespace {

constexpr double kChoiceShare = 0.15;   // of the work, about, that choosing formats is
constexpr int64_t kShares = 1'000'000;  // of the work, which progress is reported in

/// "layer=BITSgGROUP ...", to compare runs by.
std::string formats_text(const io::QuantizeOptions& options) {
  std::string text;
  for (const auto& [name, format] : options.formats)
    text += fmt::format("{}={}g{} ", name, format.bits, format.group_size);
  return text;
}

/// The options of a run whose layers have been given formats: the most frequent one stands for all.
io::QuantizeOptions with_formats(io::QuantizeOptions options, std::span<const ChosenFormat> chosen) {
  std::map<std::pair<int, int64_t>, int> counts;
  for (const ChosenFormat& one : chosen) {
    for (const std::string& name : one.names) {
      options.formats.insert_or_assign(name, one.format);
      ++counts[{one.format.bits, one.format.group_size}];
    }
  }
  const auto most =
      std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most != counts.end()) std::tie(options.bits, options.group_size) = most->first;
  return options;
}

/// The calibration tokens on their way through the blocks.
class Calibration {
 public:
  Calibration(const std::filesystem::path& source, const std::filesystem::path& target,
              const io::QuantizeOptions& options, const CalibrationText& text, ThreadPool* threads,
              const CalibrationProgress& progress, double share_before)
      : options_(options),
        threads_(threads),
        progress_(progress),
        share_before_(share_before),
        target_(target),
        blocks_(source, threads),
        output_(blocks_.checkpoint, target, options),
        length_(calibration_window(blocks_.config)),
        text_(text),
        ids_(calibration_ids(blocks_, text)),
        windows_(static_cast<int64_t>(ids_.size()) / length_),
        activations_(blocks_.config, length_),
        cache_(KvCache::of_one_block(blocks_.config, length_)),
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
    const std::span<float> hidden(hidden_.get(), static_cast<size_t>(windows_ * length_ * width));
    FinishedBlocks finished(target_, identity(hidden), options_.scale_dtype, options_.overwrite);
    CalibratedReport report;
    report.blocks = blocks_.config.num_layers;
    report.resumed_blocks = finished.count();
    if (finished.count() > 0) finished.read_activations(hidden);
    for (int64_t layer = 0; layer < finished.count(); ++layer) {
      for (const io::PlannedTensor* planned : planned_layers(layer))
        output_.write(*planned, finished.read(layer, *planned));
      for (auto& [name, tensor] : finished.read_replaced(layer, planned_layers(layer)))
        output_.replace(name, std::move(tensor.data));
      done_ += block_work(layer);
    }
    report_progress(0, "");
    for (int64_t layer = finished.count(); layer < blocks_.config.num_layers; ++layer) {
      run_block(layer);
      finished.add(planned_layers(layer), quantized_, hidden);
      quantized_ = {};
    }
    run_head();
    report.checkpoint = output_.finish([this](std::string_view what) { report_progress(0, what); });
    finished.remove();
    if (progress_) progress_(kShares, kShares, "");
    report.tokens = windows_ * length_;
    return report;
  }

 private:
  std::vector<const io::PlannedTensor*> planned_layers(int64_t layer) const {
    std::vector<const io::PlannedTensor*> result;
    for (const LayerGroup& group : layer_groups(blocks_.config, layer)) {
      for (const std::string& name : group.names) {
        if (const io::PlannedTensor* planned = output_.find(name)) result.push_back(planned);
      }
    }
    return result;
  }

  /// `input` are the activations before the first block.
  CalibratedRun identity(std::span<const float> input) const {
    CalibratedRun run;
    const io::CodebookSource codebooks(options_.codebook);
    run.arguments = {{"flute", FLUTE_VERSION},
                     {"method", options_.method},
                     {"bits", options_.bits},
                     {"codebook", codebooks.label()},
                     {"group-size", options_.group_size},
                     {"scale-dtype", dtype_name(options_.scale_dtype)},
                     {"clip", options_.clip},
                     {"include", options_.include},
                     {"exclude", options_.exclude},
                     {"layer-bits", options_.layer_bits},
                     {"chosen formats", formats_text(options_)},
                     {"calibration-tokens", text_.tokens}};
    if (codebooks.label().starts_with("file:")) {  // which says nothing of what is in it
      run.arguments["codebook values"] = codebooks.make(options_.bits, "--bits").values;
    }
    run.text = digest(std::as_bytes(std::span(text_.text)));
    const std::string config = blocks_.checkpoint.config().dump();
    run.input = digest(std::as_bytes(std::span(config)), digest(std::as_bytes(input)));
    run.of_block = [this](int64_t block) {
      const std::string prefix = fmt::format("model.layers.{}.", block);
      uint64_t sum = 0;  // of any order: the same model may come in other shards
      for (const io::SafetensorsFile& shard : blocks_.checkpoint.shards()) {
        for (const io::TensorView& tensor : shard.tensors()) {
          if (!tensor.name.starts_with(prefix)) continue;
          sum += digest(std::as_bytes(std::span(tensor.name)), digest(tensor.data));
          io::release_pages(tensor.data);
        }
      }
      return sum;
    };
    return run;
  }

  void check_layers() {
    std::set<std::string> known = {"lm_head"};
    for (int64_t layer = 0; layer < blocks_.config.num_layers; ++layer) {
      for (const LayerGroup& group : layer_groups(blocks_.config, layer))
        known.insert(group.names.begin(), group.names.end());
    }
    for (const std::string& name : output_.layers()) {
      if (!known.contains(name)) {
        fail(ErrorCode::kInvalidArgument,
             "layer '{}': expected a linear layer of a block or lm_head, which alone have inputs to calibrate with: "
             "leave it out with --exclude",
             io::printable(name));
      }
    }
    for (int64_t layer = 0; layer < blocks_.config.num_layers; ++layer) {
      total_ += block_work(layer);
      if (options_.method != "awq") continue;
      for (const LayerGroup& group : layer_groups(blocks_.config, layer)) check_folds(group);
    }
    total_ += group_work(head_group(blocks_.config));
  }

  /// Layers that stay as they are cannot take part in scales.
  void check_folds(const LayerGroup& group) const {
    const auto need = [&](const std::string& name, const std::string& other, std::string_view why) {
      if (output_.find(name)) return;
      fail(ErrorCode::kInvalidArgument,
           "method awq: layer '{}': expected it to be quantized as '{}' is, {}, found it left out: leave out both, or "
           "none",
           name, other, why);
    };
    if (!is_planned(group)) return;
    const std::string& planned =
        *std::find_if(group.names.begin(), group.names.end(), [&](const auto& name) { return output_.find(name); });
    for (const std::string& name : group.names) need(name, planned, "whose scaled inputs it shares");
    if (!group.source.empty() && !group.source_has_bias) need(group.source, planned, "whose scales go into its rows");
  }

  // Work in multiply-adds, with which its time grows: those a token takes,
  double attention_work() const {
    const io::ModelConfig& config = blocks_.config;
    const double projected = static_cast<double>((config.num_heads + 2 * config.num_kv_heads) * config.head_dim);
    const double attention = static_cast<double>(config.num_heads * config.head_dim * length_);  // of half the window
    return projected * static_cast<double>(config.hidden_size) + attention;
  }
  double output_work() const {
    return static_cast<double>(blocks_.config.num_heads * blocks_.config.head_dim * blocks_.config.hidden_size);
  }
  double mlp_work() const {
    return 2.0 * static_cast<double>(blocks_.config.hidden_size) *
           static_cast<double>(blocks_.config.intermediate_size);
  }
  /// From the block's step before to a group's inputs.
  double input_work(const LayerGroup& group) const {
    if (group.source.empty()) return 0;
    return group.source.find(".self_attn.") != std::string::npos ? attention_work() : mlp_work();
  }
  static double moments_work(const LayerGroup& group) {
    return 0.5 * static_cast<double>(group.k) * static_cast<double>(group.k);
  }
  // those of a whole layer, group or block.
  double layer_work(const io::PlannedTensor& planned) const {
    const double n = static_cast<double>(planned.source->shape[0]), k = static_cast<double>(planned.source->shape[1]);
    return (options_.method == "gptq" ? 0.5 : options_.method == "awq" ? 20.0 : 25.0) * n * k * k;
  }
  double group_work(const LayerGroup& group) const {
    double layers = 0;
    for (const std::string& name : group.names) {
      if (const io::PlannedTensor* planned = output_.find(name)) layers += layer_work(*planned);
    }
    return layers > 0 ? layers + tokens() * (input_work(group) + moments_work(group)) : 0;
  }
  double block_work(int64_t layer) const {
    const std::array<LayerGroup, 4> groups = layer_groups(blocks_.config, layer);
    double work = tokens() * (output_work() + 1.5 * mlp_work());
    if (!keeps_attention(groups[1])) work += tokens() * attention_work();
    for (const LayerGroup& group : groups) work += group_work(group);
    return work;
  }
  double tokens() const { return static_cast<double>(windows_ * length_); }

  void report_progress(double work, std::string_view what) {
    done_ += work;
    // Sums of fractions end near the total; only finish() says that all is done.
    const double share = share_before_ + (1 - share_before_) * done_ / total_;
    const auto shares = static_cast<int64_t>(share * static_cast<double>(kShares));
    if (progress_) progress_(std::min(shares, kShares - 1), kShares, what);
  }

  /// Quantizes those of the group's layers that the plan has, given `collect`, which adds all their inputs to the
  /// moments.
  template <typename Collect>
  void quantize(const LayerGroup& group, const Collect& collect) {
    if (!is_planned(group)) return;
    InputMoments moments(group.k);
    collect(moments);
    naming(group, [&] {
      const CalibratedQuantizer quantizer(std::move(moments), threads_);
      for (const std::string& name : group.names) {
        if (const io::PlannedTensor* planned = output_.find(name)) quantize_layer(quantizer, *planned);
      }
    });
  }

  /// Is what goes into the output projection still right when its layer has been quantized? awq changes what makes it.
  bool keeps_attention(const LayerGroup& output) const { return options_.method != "awq" && is_planned(output); }

  bool is_planned(const LayerGroup& group) const {
    return std::any_of(group.names.begin(), group.names.end(), [&](const auto& name) { return output_.find(name); });
  }

  /// `action`, whose errors get the group's name.
  template <typename Action>
  static void naming(const LayerGroup& group, const Action& action) {
    try {
      action();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kInvalidArgument) throw;
      fail(ErrorCode::kInvalidArgument, "layer '{}': {}", group.names.front(), error.what());
    }
  }

  /// Method awq, groups of which each one's inputs come from the one before: finds all their scales in one pass over
  /// the text, in which `collect` adds a window's inputs to the moments (null where nothing of a group is planned);
  /// then quantizes.
  template <size_t kCount, typename Collect>
  void quantize_scaled(const std::array<const LayerGroup*, kCount>& groups, std::string_view what,
                       const Collect& collect) {
    std::array<std::optional<InputMoments>, kCount> moments;
    double work = 0;
    for (size_t i = 0; i < kCount; ++i) {
      if (!is_planned(*groups[i])) continue;
      moments[i].emplace(groups[i]->k);
      work += input_work(*groups[i]) + moments_work(*groups[i]);
    }
    if (work == 0) return;
    for_windows(false, work, what, [&] { collect(moments); });
    Folding folding(blocks_);
    std::array<std::optional<AwqQuantizer>, kCount> quantizers;
    for (size_t i = 0; i < kCount; ++i) {
      if (!moments[i]) continue;
      naming(*groups[i],
             [&] { find_scales(*groups[i], quantizers[i].emplace(std::move(*moments[i]), threads_), folding); });
    }
    for (const auto& [name, tensor] : folding.tensors()) {
      output_.replace(name, tensor.data);
      quantized_.tensors.insert_or_assign(name, tensor);
    }
    for (size_t i = 0; i < kCount; ++i) {
      if (!quantizers[i]) continue;
      naming(*groups[i], [&] {
        for (const std::string& name : groups[i]->names) {
          if (const io::PlannedTensor* planned = output_.find(name)) quantize_layer(*quantizers[i], *planned, folding);
        }
      });
      quantizers[i].reset();
    }
  }

  CalibratedOptions options_for(const io::PlannedTensor& planned, const Codebook& codebook) const {
    return {planned.layer.group_size, options_.scale_dtype, output_.max_magnitude(codebook), options_.clip};
  }

  void find_scales(const LayerGroup& group, const AwqQuantizer& quantizer, Folding& folding) {
    if (group.source_has_bias) return;  // which is no row of a quantized layer, and would be rounded again
    std::vector<AwqLayer> layers;
    for (const std::string& name : group.names) {
      report_progress(0, name);
      const io::TensorView& tensor = *output_.find(name)->source;
      const DType dtype = io::float_dtype(tensor, blocks_.checkpoint.file_of(tensor.name));
      Codebook codebook = output_.make_codebook(*output_.find(name), tensor.data.data(), dtype, threads_);
      const float largest = output_.max_magnitude(codebook);
      layers.push_back({tensor.data.data(), dtype, tensor.shape[0], std::move(codebook), largest});
    }
    const io::PlannedTensor& first = *output_.find(group.names.front());
    folding.fold(group, quantizer.find_scales(layers, options_for(first, layers.front().codebook), group.rows));
  }

  void quantize_layer(const AwqQuantizer& quantizer, const io::PlannedTensor& planned, const Folding& folding) {
    report_progress(0, planned.prefix);
    const std::vector<float> weight = folding.weight(planned.prefix, *planned.source);
    const Codebook codebook = output_.make_codebook(planned, weight.data(), DType::kF32, threads_);
    const std::vector<float> columns = folding.columns(planned.prefix, planned.source->shape[1]);
    finish_layer(planned, quantizer.quantize(weight.data(), planned.source->shape[0], codebook,
                                             options_for(planned, codebook), columns));
  }

  void quantize_layer(const CalibratedQuantizer& quantizer, const io::PlannedTensor& planned) {
    report_progress(0, planned.prefix);
    const io::TensorView& tensor = *planned.source;
    const DType dtype = io::float_dtype(tensor, blocks_.checkpoint.file_of(tensor.name));
    const Codebook codebook = output_.make_codebook(planned, tensor.data.data(), dtype, threads_);
    const CalibratedOptions options = options_for(planned, codebook);
    const int64_t n = tensor.shape[0];
    finish_layer(planned, options_.method == "gptq" ? quantizer.gptq(tensor.data.data(), dtype, n, codebook, options)
                                                    : quantizer.ldlq(tensor.data.data(), dtype, n, codebook, options));
  }

  void finish_layer(const io::PlannedTensor& planned, PackedMatrix matrix) {
    output_.write(planned, matrix);
    io::release_pages(planned.source->data);
    report_progress(layer_work(planned), planned.prefix);
    quantized_.layers.insert_or_assign(planned.prefix, std::move(matrix));
  }

  /// `step`, which takes `work` a token, with each window's hidden rows in activations_, which are stored again where
  /// `keep`.
  template <typename Step>
  void for_windows(bool keep, double work, std::string_view what, const Step& step) {
    const int64_t count = length_ * blocks_.config.hidden_size;
    report_progress(0, what);
    for (int64_t i = 0; i < windows_; ++i) {
      std::copy_n(hidden_.get() + i * count, count, activations_.hidden.get());
      step();
      if (keep) std::copy_n(activations_.hidden.get(), count, hidden_.get() + i * count);
      report_progress(work * static_cast<double>(length_), what);
    }
  }

  template <typename Step>
  void for_windows_of(const LayerGroup& group, std::string_view what, const Step& step) {
    for_windows(false, input_work(group) + moments_work(group), what, step);
  }

  void run_block(int64_t layer) {
    const int64_t m = length_;
    const std::array<LayerGroup, 4> of_layer = layer_groups(blocks_.config, layer);
    const LayerGroup &qkv = of_layer[0], &output = of_layer[1], &gate_up = of_layer[2], &down = of_layer[3];
    Activations& a = activations_;
    Block block = blocks_.read_block(layer);
    const auto attend = [&] {  // to the normed
      cache_.clear();
      blocks_.attend_rows(block, layer, 0, m, rope_table_, cache_, a);
    };
    std::unique_ptr<float[]> attended;  // [windows, length, output.k], what keeps_attention() is for
    if (options_.method == "awq") {
      quantize_scaled(std::array{&qkv, &output}, "inputs of attention", [&](auto& moments) {
        blocks_.norm_for_attention(block, m, a);
        if (moments[0]) moments[0]->add(a.normed.get(), qkv.k, m, threads_);
        if (!moments[1]) return;
        attend();
        moments[1]->add(a.attention.get(), output.k, m, threads_);
      });
    } else {
      quantize(qkv, [&](InputMoments& moments) {
        for_windows_of(qkv, "inputs of attention", [&] {
          blocks_.norm_for_attention(block, m, a);
          moments.add(a.normed.get(), qkv.k, m, threads_);
        });
      });
      block = blocks_.read_block(layer, &quantized_);
      quantize(output, [&](InputMoments& moments) {
        attended = Activations::allocate(windows_ * m * output.k);
        float* next = attended.get();
        for_windows_of(output, "outputs of attention", [&] {
          blocks_.norm_for_attention(block, m, a);
          attend();
          moments.add(a.attention.get(), output.k, m, threads_);
          next = std::copy_n(a.attention.get(), m * output.k, next);
        });
      });
    }
    block = blocks_.read_block(layer, &quantized_);
    const float* next = attended.get();
    for_windows(true, output_work() + (keeps_attention(output) ? 0 : attention_work()), "attention", [&] {
      if (next == nullptr) {
        blocks_.norm_for_attention(block, m, a);
        attend();
      } else {
        std::copy_n(next, m * output.k, a.attention.get());
        next += m * output.k;
      }
      blocks_.add_attention(block, m, a);
    });
    attended.reset();
    if (options_.method == "awq") {
      quantize_scaled(std::array{&gate_up, &down}, "inputs of the MLP", [&](auto& moments) {
        blocks_.norm_for_mlp(block, m, a);
        if (moments[0]) moments[0]->add(a.normed.get(), gate_up.k, m, threads_);
        if (!moments[1]) return;
        blocks_.activate_mlp(block, m, a);
        moments[1]->add(a.gate_up.get(), 2 * down.k, m, threads_);
      });
    } else {
      quantize(gate_up, [&](InputMoments& moments) {
        for_windows_of(gate_up, "inputs of the MLP", [&] {
          blocks_.norm_for_mlp(block, m, a);
          moments.add(a.normed.get(), gate_up.k, m, threads_);
        });
      });
      block = blocks_.read_block(layer, &quantized_);
      quantize(down, [&](InputMoments& moments) {
        for_windows_of(down, "activations of the MLP", [&] {
          blocks_.norm_for_mlp(block, m, a);
          blocks_.activate_mlp(block, m, a);
          moments.add(a.gate_up.get(), 2 * down.k, m, threads_);
        });
      });
    }
    block = blocks_.read_block(layer, &quantized_);
    for_windows(true, 1.5 * mlp_work(), "MLP", [&] {
      blocks_.norm_for_mlp(block, m, a);
      blocks_.activate_mlp(block, m, a);
      blocks_.add_mlp(block, m, a);
    });
  }

  void run_head() {
    const std::vector<float> norm = blocks_.read_norm("model.norm");
    const LayerGroup group = head_group(blocks_.config);
    const auto add_inputs = [&](InputMoments& moments) {
      blocks_.norm_rows(activations_.hidden.get(), norm, length_, activations_.normed.get());
      moments.add(activations_.normed.get(), group.k, length_, threads_);
    };
    if (options_.method == "awq") {
      quantize_scaled(std::array{&group}, "inputs of the head", [&](auto& moments) { add_inputs(*moments[0]); });
      return;
    }
    quantize(group,
             [&](InputMoments& moments) { for_windows_of(group, "inputs of the head", [&] { add_inputs(moments); }); });
  }

  const io::QuantizeOptions& options_;
  ThreadPool* threads_;
  const CalibrationProgress& progress_;
  double share_before_;  // of the run's work, that was done before
  std::filesystem::path target_;
  Blocks blocks_;
  io::QuantizedOutput output_;
  int64_t length_;  // of a window
  const CalibrationText& text_;
  std::vector<int32_t> ids_;
  int64_t windows_;
  Activations activations_;  // of one window
  KvCache cache_;
  RopeTable rope_table_;
  std::unique_ptr<float[]> hidden_;  // [windows, length, hidden_size], what the block in hand gets
  QuantizedBlock quantized_;         // the block in hand
  double done_ = 0, total_ = 0;      // work
};

}  // namespace

CalibratedReport quantize_calibrated(const std::filesystem::path& source, const std::filesystem::path& target,
                                     const io::QuantizeOptions& options, const CalibrationText& calibration,
                                     ThreadPool* threads, const CalibrationProgress& progress) {
  if (options.method != "awq" && options.method != "gptq" && options.method != "ldlq") {
    fail(ErrorCode::kInvalidArgument, "method: expected awq, gptq or ldlq, found '{}'", io::printable(options.method));
  }
  if (!options.target) return Calibration(source, target, options, calibration, threads, progress, 0).run();
  std::vector<ChosenFormat> chosen;
  {
    const Blocks blocks(source, threads);
    double done = 0;
    chosen = choose_formats(blocks, options, calibration, [&](double share) {
      done += share;
      const auto shares = static_cast<int64_t>(done * kChoiceShare * static_cast<double>(kShares));
      if (progress) progress(std::min(shares, kShares - 1), kShares, "what layers cost");
    });
  }
  const io::QuantizeOptions with = with_formats(options, chosen);
  CalibratedReport report = Calibration(source, target, with, calibration, threads, progress, kChoiceShare).run();
  report.chosen = std::move(chosen);
  return report;
}

}  // namespace flute::model
