#include "cuda/format.hpp"

#include <cstdint>
#include <limits>

#include "base/fail.hpp"

namespace flute::cuda {

constexpr auto kUnsupported = ErrorCode::kUnsupported;

Format supported_format(int64_t n, int64_t k, int bits, int64_t group_size, DType dtype) {
  if (dtype != DType::kF16 && dtype != DType::kBF16) {
    fail(kUnsupported, "matrix: CUDA multiplies activations of fp16 or bf16, found {}",
         dtype == DType::kF32 ? "fp32" : "an unknown dtype");
  }
  if (bits < 2 || bits > 4) fail(kUnsupported, "matrix: CUDA multiplies 2, 3 and 4 bits, found {}", bits);
  // Kernels count in 32 bits, with room for rounding up.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  if (n > kMost || k > kMost) {
    fail(kUnsupported, "matrix: CUDA takes N and K up to {}, found {} x {}", kMost, n, k);
  }
  return {bits, static_cast<int>(group_size), dtype == DType::kBF16};
}

Format supported_format(std::span<const PackedView> segments, DType dtype) {
  const PackedView& first = segments.front();
  int64_t n = 0;
  for (const PackedView& segment : segments) n += segment.n;
  const Format format = supported_format(n, first.k, first.bits, first.group_size, dtype);
  for (size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].per_row_codebook()) fail(kUnsupported, "matrix: segment {}: CUDA takes no codebook per row", i);
    if (segments[i].offsets != nullptr) fail(kUnsupported, "matrix: segment {}: CUDA takes no offsets", i);
  }
  return format;
}

}  // namespace flute::cuda
