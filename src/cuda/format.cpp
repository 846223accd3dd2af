#include "cuda/format.hpp"

#include <cstdint>
#include <limits>

#include "base/fail.hpp"

namespace flute::cuda {

Format supported_format(std::span<const PackedView> segments, DType dtype) {
  constexpr auto kUnsupported = ErrorCode::kUnsupported;
  const PackedView& first = segments.front();
  if (dtype != DType::kF16 && dtype != DType::kBF16) {
    fail(kUnsupported, "matrix: CUDA multiplies activations of fp16 or bf16, found {}",
         dtype == DType::kF32 ? "fp32" : "an unknown dtype");
  }
  if (first.bits < 2 || first.bits > 4) {
    fail(kUnsupported, "matrix: CUDA multiplies 2, 3 and 4 bits, found {}", first.bits);
  }
  int64_t n = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const PackedView& segment = segments[i];
    if (segment.per_row_codebook()) fail(kUnsupported, "matrix: segment {}: CUDA takes no codebook per row", i);
    if (segment.offsets != nullptr) fail(kUnsupported, "matrix: segment {}: CUDA takes no offsets", i);
    n += segment.n;
  }
  // Kernels count in 32 bits, with room for rounding up.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  if (n > kMost || first.k > kMost) {
    fail(kUnsupported, "matrix: CUDA takes N and K up to {}, found {} x {}", kMost, n, first.k);
  }
  return {first.bits, static_cast<int>(first.group_size), dtype == DType::kBF16};
}

}  // namespace flute::cuda
