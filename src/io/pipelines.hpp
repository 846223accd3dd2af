#pragma once
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flute/quantize.hpp"
#include "io/checkpoint.hpp"

namespace flute::io {

/// Called as bytes of input are done; `what` is the tensor in hand. Throwing from it cancels the run cleanly.
using Progress = std::function<void(int64_t done_bytes, int64_t total_bytes, std::string_view what)>;

struct LayerFormat {
  int bits = 4;
  int64_t group_size = 64;
};

/// Bits and group size are chosen for each layer by what it costs the model to change it.
struct TargetBits {
  double bits = 0;  ///< a weight, on average over the quantized layers, with scales and tables, at most
  std::vector<int> widths = {2, 3, 4};                    ///< bits that are chosen among
  std::vector<int64_t> group_sizes = {32, 64, 128, 256};  ///< and group sizes
};

struct QuantizeOptions {
  int bits = 4;
  std::string codebook = "nf";  ///< nf, int, fp (or a variant), kmeans, or a path to a codebook file
  int64_t group_size = 64;
  std::string method = "rtn";  ///< or mse; or awq, gptq, ldlq, which need calibration (model/calibrated.hpp)
  DType scale_dtype = DType::kF16;
  float clip = 1.0f;
  std::vector<std::string> include;  ///< regexes (ECMAScript, searched): also quantize matching 2-D weights
  std::vector<std::string> exclude;  ///< regexes: leave matching layers as they are
  std::vector<std::pair<std::string, int>> layer_bits;  ///< regex -> bits, the first match wins
  std::optional<TargetBits> target;  ///< in place of bits, group_size and layer_bits; needs calibration
  std::map<std::string, LayerFormat, std::less<>> formats;  ///< of single layers, by name; what comes before them all
  bool overwrite = false;
};

/// One layer of a plan or a result.
struct LayerReport {
  std::string name;  ///< prefix P, or the tensor's name when it is not quantized
  bool quantized = false;
  int64_t n = 0, k = 0;  ///< of a 2-D tensor
  int bits = 0;          ///< bits of a code; bits of an element when not quantized
  int64_t group_size = 0;
  std::string codebook;  ///< "nf", ..., or the dtype when not quantized
  int64_t bytes = 0;     ///< stored
  int64_t elements = 0;
  double bits_per_weight = 0;            ///< 8 * bytes / elements
  std::optional<double> relative_error;  ///< ||W - Wq||_F / ||W||_F where an original was given
};

struct CheckpointReport {
  std::vector<LayerReport> layers;  ///< every tensor of the checkpoint, quantized ones merged into one entry
  int64_t bytes = 0;
  int64_t elements = 0;
  double bits_per_weight = 0;            ///< of all weights
  double quantized_bits_per_weight = 0;  ///< of the quantized layers alone
};

/// The names that QuantizeOptions::codebook may have; anything else is a path.
std::vector<std::string_view> codebook_names();

/// Does the method (mse, ldlq) make tables of its own, beginning with QuantizeOptions::codebook?
bool learns_table(std::string_view method);
/// Does it (mse, awq, ldlq) search for scales, so that QuantizeOptions::clip has to be 1?
bool searches_scales(std::string_view method);

/// What quantize_checkpoint would do; touches nothing.
CheckpointReport plan_quantization(const std::filesystem::path& source, const QuantizeOptions& options);

/// Quantizes `source` to `target`: a temporary folder beside the target, renamed at the end; removed on any error.
/// Memory holds a few megabytes of weights at a time, with method mse one quantized layer. Other files of the folder
/// are carried over. Whatever ends the process, there is a whole target or none; it is not flushed to the disk (as with
/// cp, a power failure in the next seconds may still lose it).
CheckpointReport quantize_checkpoint(const std::filesystem::path& source, const std::filesystem::path& target,
                                     const QuantizeOptions& options, ThreadPool* threads, const Progress& progress);

/// Writes a plain checkpoint of `dtype`; the values are dequantize_rows's.
void dequantize_checkpoint(const std::filesystem::path& source, const std::filesystem::path& target, DType dtype,
                           bool overwrite, ThreadPool* threads, const Progress& progress);

/// What a checkpoint holds; with `against`, each quantized layer's relative error to the original's tensor, but not for
/// method awq, whose layers stand for the original's with scales folded into them.
CheckpointReport inspect_checkpoint(const std::filesystem::path& path,
                                    const std::optional<std::filesystem::path>& against = std::nullopt,
                                    ThreadPool* threads = nullptr, const Progress& progress = {});

}  // namespace flute::io
