#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/kernels.hpp"
#include "flute/gemm.hpp"

namespace flute::cpu {

/// Up to kTaskBlocks consecutive blocks of one segment: what one task of a multiply computes.
struct Task {
  int64_t segment = 0;
  int64_t block = 0;  ///< within the segment
  int64_t blocks = 0;
  int64_t row = 0;   ///< of the matrix, of the first row of the first block
  int64_t rows = 0;  ///< that exist; the rest of the last block is padding
};

/// Weights tiled for the kernels, quantized or plain.
class Weights {
 public:
  /// Tasks for segments of `rows` rows each.
  Weights(std::span<const int64_t> segment_rows, int64_t k);
  virtual ~Weights() = default;

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  std::span<const Task> tasks() const { return tasks_; }

  /// Can decode() multiply this matrix? If not, few tokens go the way of many.
  virtual bool decodes(const Kernels& kernels) const = 0;
  /// As Kernels::decode, for the task's blocks.
  virtual void decode(const Kernels& kernels, const Task& task, DType dtype, const float* x, int64_t ldx, int tokens,
                      float* y) const = 0;
  /// The task's weights, rounded to `dtype`, for chunks [begin, end): [blocks][k][16].
  virtual void panel(const Kernels& kernels, const Task& task, DType dtype, int64_t begin, int64_t end,
                     float* panel) const = 0;

 private:
  int64_t n_ = 0, k_ = 0;
  std::vector<Task> tasks_;
};

/// flute::gemm for any Weights. Throws kInvalidArgument on bad arguments.
void multiply(const Weights& weights, const GemmArgs& args, ThreadPool* threads);

}  // namespace flute::cpu
