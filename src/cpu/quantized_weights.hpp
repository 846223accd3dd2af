#pragma once
#include <span>
#include <vector>

#include "cpu/buffer.hpp"
#include "cpu/weights.hpp"
#include "flute/packed.hpp"

namespace flute::cpu {

/// A quantized matrix in the tiled layout: [segment][block of 16 rows][chunk of 32 k][word 0..bits)[row], the packed
/// words of 16 rows side by side. Rows that the last block lacks are zero.
class QuantizedWeights final : public Weights {
 public:
  /// Validated segments of one K, bits and group size.
  QuantizedWeights(std::span<const PackedView> segments, ThreadPool* threads);

  int bits() const { return bits_; }
  int64_t group_size() const { return group_size_; }
  int segment_count() const { return static_cast<int>(segments_.size()); }
  size_t bytes() const;
  PackedMatrix to_packed(int segment) const;

  bool decodes(const Kernels& kernels) const override { return decodes_ && bits_ <= kernels.decode_bits; }
  void decode(const Kernels& kernels, const Task& task, DType dtype, const float* x, int64_t ldx, int tokens,
              float* y) const override;
  void panel(const Kernels& kernels, const Task& task, DType dtype, int64_t begin, int64_t end,
             float* panel) const override;

 private:
  struct Segment {
    int64_t n = 0;
    DType scale_dtype = DType::kF16;
    Buffer codes, scales, offsets;  ///< offsets may be empty
    std::vector<float> codebook;    ///< as given
    std::vector<float> tables[3];   ///< rounded to each DType; per row: [block][code][16]
    bool per_row = false;
  };

  QuantizedTile tile(const Segment& segment, const Task& task, DType dtype) const;

  int bits_ = 0;
  int64_t group_size_ = 0, groups_ = 0;
  bool decodes_ = true;  ///< no offsets and no table per row
  std::vector<Segment> segments_;
};

}  // namespace flute::cpu
