#include "model/linear.hpp"

#include <fmt/ranges.h>

#include <utility>

#include "base/fail.hpp"

namespace flute::model {
namespace {

using Table = std::variant<cpu::DenseView, PackedView>;

constexpr int64_t kRowBlock = 32;   // what flute::Matrix asks of boundaries between layers
constexpr size_t kMaxSegments = 4;  // and of their number

/// Tensor `name` of exactly this shape, [n] or [n, k], and a float dtype. The data stay the checkpoint's.
cpu::DenseView float_tensor(const io::Checkpoint& checkpoint, const std::string& name, std::vector<int64_t> shape) {
  const io::TensorView& tensor = checkpoint.at(name);
  const std::filesystem::path& file = checkpoint.file_of(name);
  if (tensor.shape != shape) {
    fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': expected shape [{}], found [{}]", file.string(), name,
         fmt::join(shape, ", "), fmt::join(tensor.shape, ", "));
  }
  return {shape[0], shape.size() > 1 ? shape[1] : 1, io::float_dtype(tensor, file), tensor.data.data()};
}

Table open_table(const io::Checkpoint& checkpoint, const std::string& name, int64_t n, int64_t k) {
  if (checkpoint.find(name + ".weight_packed") == nullptr) {
    return float_tensor(checkpoint, name + ".weight", {n, k});
  }
  const PackedView view = checkpoint.packed_layer(name);
  if (view.n != n || view.k != k) {
    fail(ErrorCode::kInvalidFormat, "{}: tensor '{}.weight_packed': expected a layer of shape [{}, {}], found [{}, {}]",
         checkpoint.file_of(name + ".weight_packed").string(), name, n, k, view.n, view.k);
  }
  return view;
}

bool stackable(const Table& a, const Table& b) {
  if (a.index() != b.index()) return false;
  if (const auto* dense = std::get_if<cpu::DenseView>(&a)) {
    return dense->n % kRowBlock == 0 && dense->dtype == std::get<cpu::DenseView>(b).dtype;
  }
  const PackedView& first = std::get<PackedView>(a);
  const PackedView& second = std::get<PackedView>(b);
  return first.n % kRowBlock == 0 && first.bits == second.bits && first.group_size == second.group_size &&
         first.scale_dtype == second.scale_dtype && (first.offsets == nullptr) == (second.offsets == nullptr) &&
         first.per_row_codebook() == second.per_row_codebook();
}

template <typename View>
std::vector<View> views_of(std::span<const Table> tables) {
  std::vector<View> views;
  for (const Table& table : tables) views.push_back(std::get<View>(table));
  return views;
}

std::variant<Matrix, cpu::DenseMatrix> stack(std::span<const Table> tables, ThreadPool* threads) {
  if (std::holds_alternative<PackedView>(tables.front())) {
    return Matrix::from_packed(Device{}, views_of<PackedView>(tables), {.threads = threads});
  }
  return cpu::DenseMatrix(views_of<cpu::DenseView>(tables), threads);
}

}  // namespace

std::vector<float> read_vector(const io::Checkpoint& checkpoint, const std::string& name, int64_t n) {
  const cpu::DenseView tensor = float_tensor(checkpoint, name, {n});
  std::vector<float> values(static_cast<size_t>(n));
  convert_to_f32(tensor.data, tensor.dtype, values.data(), values.size());
  return values;
}

Linear::Linear(const io::Checkpoint& checkpoint, std::span<const LayerName> layers, int64_t k, bool bias,
               ThreadPool* threads, const PackedLayers* quantized) {
  std::vector<Table> tables;
  for (const LayerName& layer : layers) {
    if (quantized != nullptr && quantized->contains(layer.name)) {
      tables.emplace_back(quantized->find(layer.name)->second.view());
    } else {
      tables.push_back(open_table(checkpoint, layer.name, layer.n, k));
    }
    if (bias) {
      const std::vector<float> values = read_vector(checkpoint, layer.name + ".bias", layer.n);
      bias_.insert(bias_.end(), values.begin(), values.end());
    }
  }
  for (size_t begin = 0; begin < tables.size();) {
    size_t end = begin + 1;
    while (end < tables.size() && end - begin < kMaxSegments && stackable(tables[end - 1], tables[end])) ++end;
    parts_.push_back({stack(std::span(tables).subspan(begin, end - begin), threads), n_});
    for (; begin < end; ++begin) n_ += layers[begin].n;
  }
}

size_t Linear::bytes() const {
  size_t bytes = bias_.size() * sizeof(float);
  for (const Part& part : parts_) {
    bytes += std::visit([](const auto& matrix) { return matrix.bytes(); }, part.matrix);
  }
  return bytes;
}

void Linear::multiply(const float* x, int64_t ldx, int64_t m, float* y, ThreadPool* threads) const {
  for (const Part& part : parts_) {
    GemmArgs args;
    args.m = m;
    args.x = x;
    args.ldx = ldx;
    args.y = y + part.first_row;
    args.ldy = n_;
    args.bias = bias_.empty() ? nullptr : bias_.data() + part.first_row;
    if (const auto* packed = std::get_if<Matrix>(&part.matrix)) {
      Execution execution;
      execution.threads = threads;
      gemm(*packed, args, execution);
    } else {
      std::get<cpu::DenseMatrix>(part.matrix).gemm(args, threads);
    }
  }
}

Embedding::Embedding(const io::Checkpoint& checkpoint, const std::string& name, int64_t rows, int64_t width)
    : table_(open_table(checkpoint, name, rows, width)) {}

void Embedding::read_row(int64_t row, float* out) const {
  if (const auto* packed = std::get_if<PackedView>(&table_)) {
    dequantize_rows(*packed, row, row + 1, DType::kF32, out);
    return;
  }
  const auto& dense = std::get<cpu::DenseView>(table_);
  const size_t row_bytes = static_cast<size_t>(dense.k) * dtype_size(dense.dtype);
  convert_to_f32(static_cast<const std::byte*>(dense.data) + static_cast<size_t>(row) * row_bytes, dense.dtype, out,
                 static_cast<size_t>(dense.k));
}

}  // namespace flute::model
