#include "flute/tiled.hpp"

#include <array>
#include <utility>

#include "backend/segments.hpp"
#include "base/fail.hpp"
#include "cuda/backend.hpp"
#include "format/shape.hpp"

namespace flute {
namespace {

constexpr auto kInvalid = ErrorCode::kInvalidArgument;
constexpr size_t kAlignment = 16;

std::array<std::pair<const void*, const char*>, 3> parts_of(const TiledView& matrix) {
  return {{{matrix.codes, "codes"}, {matrix.scales, "scales"}, {matrix.codebooks, "codebooks"}}};
}

/// Sizes, and of the pointers their alignment.
void check_tiled(const TiledView& matrix) {
  if (matrix.segment_count < 1 || matrix.segment_count > static_cast<int>(kMostSegments)) {
    fail(kInvalid, "matrix: expected 1..{} segments, found {}", kMostSegments, matrix.segment_count);
  }
  const auto count = static_cast<size_t>(matrix.segment_count);
  for (int i = 0; i < matrix.segment_count; ++i) {
    const int64_t rows = matrix.segment_rows[static_cast<size_t>(i)];
    check_shape(rows, matrix.k, matrix.bits, matrix.group_size, fmt::format("matrix: segment {}", i));
    check_segment_rows(static_cast<size_t>(i), count, rows);
  }
  for (const auto& [pointer, name] : parts_of(matrix)) {
    if (reinterpret_cast<uintptr_t>(pointer) % kAlignment != 0) {
      fail(kInvalid, "matrix: expected {} at a multiple of {} bytes, found {}", name, kAlignment, pointer);
    }
  }
}

/// The same, and all buffers are there.
void check_filled(const TiledView& matrix) {
  check_tiled(matrix);
  if (matrix.n() == 0) return;
  for (const auto& [pointer, name] : parts_of(matrix)) {
    if (pointer == nullptr) fail(kInvalid, "matrix: expected {}, found null", name);
  }
}

}  // namespace

TiledBytes tiled_bytes(const TiledView& matrix) {
  check_tiled(matrix);
  return cuda::tiled_bytes(matrix);
}

void tile(const TiledView& matrix, std::span<const PackedView> segments, void* stream) {
  check_tiled(matrix);
  check_segments(segments, /*check_values=*/false);
  if (segments.size() != static_cast<size_t>(matrix.segment_count)) {
    fail(kInvalid, "tile: expected {} segments, found {}", matrix.segment_count, segments.size());
  }
  if ((matrix.scales == nullptr) != (matrix.codebooks == nullptr)) {
    fail(kInvalid, "tile: expected scales and codebooks, or neither, found {} alone",
         matrix.scales == nullptr ? "codebooks" : "scales");
  }
  for (size_t i = 0; i < segments.size(); ++i) {
    const PackedView& found = segments[i];
    const int64_t rows = matrix.segment_rows[i];
    if (found.n != rows || found.k != matrix.k || found.bits != matrix.bits || found.group_size != matrix.group_size) {
      fail(kInvalid, "tile: segment {}: expected {} x {}, {} bits, group size {}, found {} x {}, {}, {}", i, rows,
           matrix.k, matrix.bits, matrix.group_size, found.n, found.k, found.bits, found.group_size);
    }
  }
  cuda::tile(matrix, segments, stream);
}

void untile(const TiledView& matrix, int segment, uint32_t* codes, void* stream) {
  check_tiled(matrix);
  if (segment < 0 || segment >= matrix.segment_count) {
    fail(kInvalid, "untile: expected a segment below {}, found {}", matrix.segment_count, segment);
  }
  if (matrix.segment_rows[static_cast<size_t>(segment)] == 0) return;
  if (matrix.codes == nullptr || codes == nullptr) {
    fail(kInvalid, "untile: expected codes, found null for {}", codes == nullptr ? "the target" : "the matrix");
  }
  cuda::untile(matrix, segment, codes, stream);
}

void dequantize(const TiledView& matrix, void* out, void* stream) {
  check_filled(matrix);
  if (matrix.n() == 0) return;
  if (out == nullptr || reinterpret_cast<uintptr_t>(out) % kAlignment != 0) {
    fail(kInvalid, "dequantize: expected out at a multiple of {} bytes, found {}", kAlignment, out);
  }
  cuda::dequantize(matrix, out, stream);
}

void gemm(const TiledView& matrix, const GemmArgs& args, const Execution& execution) {
  check_filled(matrix);
  cuda::multiply(matrix, args, execution);
}

}  // namespace flute
