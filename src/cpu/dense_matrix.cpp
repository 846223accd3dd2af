#include "cpu/dense_matrix.hpp"

#include <algorithm>
#include <vector>

#include "base/fail.hpp"
#include "cpu/buffer.hpp"
#include "cpu/weights.hpp"
#include "flute/threads.hpp"

namespace flute::cpu {
namespace {

std::vector<int64_t> rows_of(std::span<const DenseView> segments) {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  if (segments.empty()) fail(kInvalid, "dense matrix: expected a segment, found none");
  std::vector<int64_t> rows;
  for (const DenseView& segment : segments) {
    if (segment.k <= 0 || segment.k % kChunk != 0 || segment.k != segments.front().k) {
      fail(kInvalid, "dense matrix: expected K to be a positive multiple of {} common to all segments, found {}",
           kChunk, segment.k);
    }
    if (segment.n < 0) fail(kInvalid, "dense matrix: expected N >= 0, found {}", segment.n);
    if (segment.n > 0 && segment.data == nullptr) fail(kInvalid, "dense matrix: expected weights, found none");
    rows.push_back(segment.n);
  }
  return rows;
}

/// Row `row` of `segment` as fp32.
void load_row(const DenseView& segment, int64_t row, float* out) {
  const auto* source = static_cast<const std::byte*>(segment.data);
  convert_to_f32(source + static_cast<size_t>(row * segment.k) * dtype_size(segment.dtype), segment.dtype, out,
                 static_cast<size_t>(segment.k));
}

}  // namespace

/// Tiles [segment][block of 16 rows][k][row], in the storage dtype.
class DenseWeights final : public Weights {
 public:
  DenseWeights(std::span<const DenseView> segments, ThreadPool* threads)
      : Weights(rows_of(segments), segments.front().k), dtype_(segments.front().dtype) {
    for (const DenseView& segment : segments) {
      if (segment.dtype != dtype_) dtype_ = DType::kF32;
    }
    for (const DenseView& segment : segments) {
      const int64_t blocks = (segment.n + kBlockRows - 1) / kBlockRows, count = k() * kBlockRows;
      tiles_.emplace_back(static_cast<size_t>(blocks * count) * dtype_size(dtype_));
      std::byte* tiles = tiles_.back().data();
      const auto body = [&](int64_t block) {
        std::vector<float> row(static_cast<size_t>(k())), tile(static_cast<size_t>(count));
        for (int64_t r = 0; r < kBlockRows && block * kBlockRows + r < segment.n; ++r) {
          load_row(segment, block * kBlockRows + r, row.data());
          for (int64_t i = 0; i < k(); ++i) tile[i * kBlockRows + r] = row[i];
        }
        convert_from_f32(tile.data(), tiles + static_cast<size_t>(block * count) * dtype_size(dtype_), dtype_,
                         static_cast<size_t>(count));
      };
      parallel_for(threads, blocks, std::cref(body));
    }
  }

  size_t bytes() const {
    size_t bytes = 0;
    for (const Buffer& tiles : tiles_) bytes += tiles.bytes();
    return bytes;
  }

  bool decodes(const Kernels&) const override { return true; }

  void decode(const Kernels& kernels, const Task& task, DType, const float* x, int64_t ldx, int tokens,
              float* y) const override {
    DenseTile tile;
    tile.k = k();
    tile.dtype = dtype_;
    tile.weights = weights(task, 0, 0);
    kernels.decode_dense(tile, task.blocks, x, ldx, tokens, y);
  }

  void panel(const Kernels&, const Task& task, DType, int64_t begin, int64_t end, float* panel) const override {
    const int64_t count = (end - begin) * kChunk * kBlockRows;
    for (int64_t block = 0; block < task.blocks; ++block, panel += count) {
      convert_to_f32(weights(task, block, begin * kChunk), dtype_, panel, static_cast<size_t>(count));
    }
  }

 private:
  const std::byte* weights(const Task& task, int64_t block, int64_t k_begin) const {
    const int64_t index = ((task.block + block) * k() + k_begin) * kBlockRows;
    return tiles_[static_cast<size_t>(task.segment)].data() + static_cast<size_t>(index) * dtype_size(dtype_);
  }

  DType dtype_;
  std::vector<Buffer> tiles_;
};

DenseMatrix::DenseMatrix(std::span<const DenseView> segments, ThreadPool* threads)
    : weights_(std::make_unique<DenseWeights>(segments, threads)) {}
DenseMatrix::DenseMatrix(DenseMatrix&&) noexcept = default;
DenseMatrix& DenseMatrix::operator=(DenseMatrix&&) noexcept = default;
DenseMatrix::~DenseMatrix() = default;

int64_t DenseMatrix::n() const { return weights_->n(); }
int64_t DenseMatrix::k() const { return weights_->k(); }
size_t DenseMatrix::bytes() const { return weights_->bytes(); }
void DenseMatrix::gemm(const GemmArgs& args, ThreadPool* threads) const { multiply(*weights_, args, threads); }

}  // namespace flute::cpu
