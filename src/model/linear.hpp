#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "cpu/dense_matrix.hpp"
#include "flute/gemm.hpp"
#include "io/checkpoint.hpp"

namespace flute::model {

/// A linear layer of a checkpoint by name: `name`.weight (or `name`.weight_packed and so on) is [n, k].
struct LayerName {
  std::string name;
  int64_t n = 0;
};

/// Quantized layers that are not in a checkpoint (yet), by name.
using PackedLayers = std::map<std::string, PackedMatrix, std::less<>>;

/// A tensor of a checkpoint with other values, by name.
struct ReplacedTensor {
  io::TensorPlan plan;
  std::vector<std::byte> data;
};
using ReplacedTensors = std::map<std::string, ReplacedTensor, std::less<>>;

/// What stands in place of a block's tensors.
struct QuantizedBlock {
  PackedLayers layers;
  ReplacedTensors tensors;  ///< norms
};

/// Linear layers that share their input, quantized or not: y[m, all n] = x[m, k] W^T (+ bias). Neighbours of one kind
/// (bits and group size, or dtype) whose boundaries allow it are one matrix, the others are multiplied one by one.
class Linear {
 public:
  Linear() = default;
  /// Throws kInvalidFormat naming tensor, expected and found where a layer is missing or has another shape. Layers that
  /// are in `quantized` are taken from there.
  Linear(const io::Checkpoint& checkpoint, std::span<const LayerName> layers, int64_t k, bool bias, ThreadPool* threads,
         const PackedLayers* quantized = nullptr);

  int64_t n() const { return n_; }
  size_t bytes() const;
  size_t matrix_count() const { return parts_.size(); }
  /// x's rows are `ldx` floats apart, y's n() floats.
  void multiply(const float* x, int64_t ldx, int64_t m, float* y, ThreadPool* threads) const;

 private:
  struct Part {
    std::variant<Matrix, cpu::DenseMatrix> matrix;
    int64_t first_row;
  };
  std::vector<Part> parts_;
  std::vector<float> bias_;
  int64_t n_ = 0;
};

/// Tensor `name` of shape [n] and a float dtype, as fp32.
std::vector<float> read_vector(const io::Checkpoint& checkpoint, const std::string& name, int64_t n);

/// A table of rows, read from the mapped checkpoint one by one. `name`.weight may be quantized, too.
class Embedding {
 public:
  Embedding() = default;
  Embedding(const io::Checkpoint& checkpoint, const std::string& name, int64_t rows, int64_t width);
  void read_row(int64_t row, float* out) const;

 private:
  std::variant<cpu::DenseView, PackedView> table_;
};

}  // namespace flute::model
