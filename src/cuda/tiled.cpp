#include "cuda/tiled.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "backend/arguments.hpp"
#include "base/fail.hpp"
#include "cuda/backend.hpp"
#include "cuda/device.hpp"
#include "cuda/format.hpp"
#include "cuda/recent.hpp"
#include "cuda/tiling.hpp"
#include "cuda/upload.hpp"

namespace flute::cuda {
namespace {

// Codes on their way through device memory at a time: enough that a copy is no slower for its beginning and end, and no
// burden beside a matrix.
constexpr int64_t kStagingBytes = int64_t{64} << 20;
// 16-byte pieces of activations are fetched as they lie.
constexpr size_t kXAlignment = 16;
constexpr int64_t kXElements = 8;
// Tokens of a launch: what plans count with fits into 32 bits.
constexpr int64_t kMostTokens = int64_t{1} << 20;

int64_t row_words(const TiledLayout& layout) { return int64_t{layout.k} / 32 * layout.format.bits; }

/// Rows whose codes fill the staging memory: a multiple of 16.
int64_t staged_rows(const TiledLayout& layout, int64_t rows) {
  const int64_t most = std::max<int64_t>(1, kStagingBytes / (kGroupRows * row_words(layout) * 4)) * kGroupRows;
  return std::min(most, rows);
}

/// The buffer as host memory, rounded to the matrix's dtype.
std::vector<uint16_t> codebook_of(const PackedView& segment, const TiledMatrix& matrix, const std::string& what,
                                  cudaStream_t stream) {
  (void)in_host_memory(segment.codebook.data(), matrix.device, what + ": codebook");
  std::vector<float> values(segment.codebook.size());
  check(
      cudaMemcpyAsync(values.data(), segment.codebook.data(), segment.codebook.size_bytes(), cudaMemcpyDefault, stream),
      what);
  check(cudaStreamSynchronize(stream), what);
  for (size_t code = 0; code < values.size(); ++code) {
    if (!std::isfinite(values[code])) {
      fail(ErrorCode::kInvalidArgument, "{}: codebook: row 0, code {}: expected a finite value, found {}", what, code,
           values[code]);
    }
  }
  std::vector<uint16_t> rounded(values.size());
  convert_from_f32(values.data(), rounded.data(), matrix.dtype, values.size());
  return rounded;
}

[[noreturn]] void refuse_scale(const PackedView& segment, const std::string& what, uint64_t bad, cudaStream_t stream) {
  alignas(4) std::byte scale[4];
  const size_t size = dtype_size(segment.scale_dtype);
  check(cudaMemcpyAsync(scale, static_cast<const std::byte*>(segment.scales) + bad * size, size, cudaMemcpyDefault,
                        stream),
        what);
  check(cudaStreamSynchronize(stream), what);
  const auto groups = static_cast<uint64_t>(segment.groups());
  fail(ErrorCode::kInvalidArgument, "{}: scale of row {}, group {}: expected a finite value, found {}", what,
       bad / groups, bad % groups, load_as_f32(scale, segment.scale_dtype, 0));
}

/// Codes and scales of segments on their way into a matrix, one segment after the other through the same memory.
class Filling {
 public:
  Filling(const TiledMatrix& matrix, cudaStream_t stream)
      : matrix_(matrix), stream_(stream), upload_(matrix.device, stream) {}

  /// Lowers *first_bad, on the device, where a scale is not finite.
  void add(const PackedView& segment, int index, const std::string& what, uint64_t* first_bad) {
    const TiledLayout& layout = matrix_.layout;
    const int64_t rows_each = staged_rows(layout, segment.n);
    const size_t code_bytes = static_cast<size_t>(row_words(layout)) * 4;
    const size_t scale_bytes = static_cast<size_t>(layout.groups) * dtype_size(segment.scale_dtype);
    for (int64_t row = 0; row < segment.n; row += rows_each) {
      const int64_t rows = std::min(rows_each, segment.n - row);
      const TiledRows at = {rows, layout.segment_row[static_cast<size_t>(index)] + row, layout.n()};
      if (matrix_.codes != nullptr) {
        const void* codes = there(segment.codes.data(), row, rows, code_bytes, codes_, what + ": codes");
        check(tile_codes(layout.format.bits, static_cast<const uint32_t*>(codes), at, layout.k, matrix_.codes, stream_),
              what);
      }
      if (matrix_.scales != nullptr) {
        const void* scales = there(segment.scales, row, rows, scale_bytes, scales_, what + ": scales");
        check(tile_scales(scales, segment.scale_dtype, at, layout.groups, layout.tiled_groups, matrix_.dtype,
                          matrix_.scales, first_bad, row, stream_),
              what);
      }
    }
  }

 private:
  /// Rows on the device: where they are, or a copy of them.
  const void* there(const void* data, int64_t row, int64_t rows, size_t row_bytes, DeviceBuffer& copy,
                    const std::string& what) {
    const std::byte* from = static_cast<const std::byte*>(data) + static_cast<size_t>(row) * row_bytes;
    if (!in_host_memory(data, matrix_.device, what)) return from;
    const size_t bytes = static_cast<size_t>(rows) * row_bytes;
    if (copy.bytes() < bytes) copy = DeviceBuffer(bytes);
    upload_.copy(copy.data(), from, bytes);
    return copy.data();
  }

  const TiledMatrix& matrix_;
  cudaStream_t stream_;
  Upload upload_;
  DeviceBuffer codes_, scales_;
};

/// Of codes and what is read with them, the parts that are there.
void expect_matrix(const TiledMatrix& matrix) {
  for (const auto& [pointer, name] :
       {std::pair{matrix.codes, "matrix: codes"}, std::pair{matrix.scales, "matrix: scales"},
        std::pair{matrix.codebooks, "matrix: codebooks"}}) {
    if (pointer != nullptr) expect_device_memory(pointer, matrix.device, name);
  }
}

TiledRows rows_of(const TiledLayout& layout, int segment) {
  return {layout.rows(segment), layout.segment_row[static_cast<size_t>(segment)], layout.n()};
}

/// Plan and kernels of a call that was not prepared, the kernels loaded. Valid until the thread's next one.
const Multiply& recent_multiply(const TiledLayout& layout, int tokens, const OpenDevice& device, int index) {
  thread_local Recent<Multiply> recent;
  const PlanKey key = {layout.shape(tokens), layout.format, index};
  return recent.get(key, [&] {
    const Multiply made(make_multiply_plan(key.shape, key.format, device.limits), key.format);
    load_kernels(made, device.limits, index);
    return made;
  });
}

}  // namespace

TiledMatrix::TiledMatrix(const TiledView& view)
    : layout(tiled_layout(view)),
      dtype(view.dtype),
      device(view.device),
      codes(static_cast<std::byte*>(view.codes)),
      scales(static_cast<std::byte*>(view.scales)),
      codebooks(static_cast<std::byte*>(view.codebooks)) {}

void fill(const TiledMatrix& matrix, std::span<const PackedView> segments, cudaStream_t stream) {
  const TiledBytes bytes = matrix.layout.bytes();
  const auto what = [](size_t segment) { return fmt::format("matrix: segment {}", segment); };
  std::vector<uint16_t> codebooks;
  if (matrix.codebooks != nullptr) {
    for (size_t i = 0; i < segments.size(); ++i) {
      const std::vector<uint16_t> codebook = codebook_of(segments[i], matrix, what(i), stream);
      codebooks.insert(codebooks.end(), codebook.begin(), codebook.end());
    }
    check(cudaMemcpyAsync(matrix.codebooks, codebooks.data(), bytes.codebooks, cudaMemcpyDefault, stream), "matrix");
  }
  const DeviceBuffer bad(segments.size() * sizeof(uint64_t));
  auto* const first_bad = reinterpret_cast<uint64_t*>(bad.data());
  check(cudaMemsetAsync(first_bad, 0xff, bad.bytes(), stream), "matrix");  // kNoneBad
  if (matrix.codes != nullptr) check(cudaMemsetAsync(matrix.codes, 0, bytes.codes, stream), "matrix");
  if (matrix.scales != nullptr) check(cudaMemsetAsync(matrix.scales, 0, bytes.scales, stream), "matrix");
  Filling filling(matrix, stream);
  for (size_t i = 0; i < segments.size(); ++i) {
    filling.add(segments[i], static_cast<int>(i), what(i), first_bad + i);
  }
  std::vector<uint64_t> found(segments.size());
  check(cudaMemcpyAsync(found.data(), first_bad, bad.bytes(), cudaMemcpyDefault, stream), "matrix");
  check(cudaStreamSynchronize(stream), "matrix");
  for (size_t i = 0; i < segments.size(); ++i) {
    if (found[i] != kNoneBad) refuse_scale(segments[i], what(i), found[i], stream);
  }
}

PackedMatrix packed_of(const TiledMatrix& given, int segment) {
  const TiledLayout& layout = given.layout;
  const cudaStream_t stream = cudaStreamLegacy;
  PackedMatrix packed;
  packed.n = layout.rows(segment);
  packed.k = layout.k;
  packed.bits = layout.format.bits;
  packed.group_size = layout.format.group_size;
  packed.scale_dtype = given.dtype;
  const int64_t words = row_words(layout);
  packed.codes.resize(static_cast<size_t>(packed.n * words));
  packed.scales.resize(static_cast<size_t>(packed.n) * static_cast<size_t>(layout.groups) * 2);
  if (packed.n == 0) return packed;
  const int64_t rows_each = staged_rows(layout, packed.n);
  const size_t scale_bytes = static_cast<size_t>(layout.groups) * 2;
  const DeviceBuffer packed_codes(static_cast<size_t>(rows_each * words) * 4);
  const DeviceBuffer packed_scales(static_cast<size_t>(rows_each) * scale_bytes);
  for (int64_t row = 0; row < packed.n; row += rows_each) {
    const int64_t rows = std::min(rows_each, packed.n - row);
    const TiledRows at = {rows, layout.segment_row[static_cast<size_t>(segment)] + row, layout.n()};
    check(untile_codes(layout.format.bits, given.codes, at, layout.k, reinterpret_cast<uint32_t*>(packed_codes.data()),
                       stream),
          "to_packed");
    check(untile_scales(given.scales, at, layout.groups, packed_scales.data(), stream), "to_packed");
    check(cudaMemcpyAsync(packed.codes.data() + row * words, packed_codes.data(), static_cast<size_t>(rows * words) * 4,
                          cudaMemcpyDefault, stream),
          "to_packed");
    check(cudaMemcpyAsync(packed.scales.data() + static_cast<size_t>(row) * scale_bytes, packed_scales.data(),
                          static_cast<size_t>(rows) * scale_bytes, cudaMemcpyDefault, stream),
          "to_packed");
    check(cudaStreamSynchronize(stream), "to_packed");
  }
  return packed;
}

std::vector<Multiply> load_multiplies(const TiledMatrix& matrix) {
  std::vector<Multiply> multiplies;
  if (matrix.layout.n() == 0) return multiplies;
  const DeviceLimits& limits = opened_device(matrix.device).limits;
  const Format& format = matrix.layout.format;
  for (int m = 1; m <= kMaxDecodeTokens; ++m) {
    multiplies.emplace_back(make_multiply_plan(matrix.layout.shape(m), format, limits), format);
    load_kernels(multiplies.back(), limits, matrix.device);
  }
  load_prefill_kernels(format, limits, matrix.device);
  return multiplies;
}

void multiply(const TiledMatrix& matrix, const GemmArgs& given, const Execution& execution,
              std::span<const Multiply> prepared) {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  const TiledLayout& layout = matrix.layout;
  const GemmArgs args = checked_arguments(given, layout.n(), layout.k);
  if (args.dtype != matrix.dtype) {
    fail(kInvalid, "gemm: expected dtype {}, which the matrix was made for, found {}", dtype_name(matrix.dtype),
         dtype_name(args.dtype));
  }
  if (args.m == 0 || layout.n() == 0) return;
  const auto address = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
  if (address(args.x) % kXAlignment != 0) {
    fail(kInvalid, "gemm: expected x at a multiple of {} bytes, found {:#x}", kXAlignment, address(args.x));
  }
  if (args.ldx % kXElements != 0) {
    fail(kInvalid, "gemm: expected ldx to be a multiple of {}, found {}", kXElements, args.ldx);
  }
  if (address(args.y) % 2 != 0 || address(args.bias) % 2 != 0) {
    fail(kInvalid, "gemm: expected y and bias aligned to their elements, found {:#x} and {:#x}", address(args.y),
         address(args.bias));
  }
  const OpenDevice& device = opened_device(matrix.device);
  if (execution.look_up_pointers) {
    expect_device_memory(args.x, matrix.device, "gemm: x");
    expect_device_memory(args.y, matrix.device, "gemm: y");
    if (args.bias != nullptr) expect_device_memory(args.bias, matrix.device, "gemm: bias");
  }

  const DeviceScope scope(matrix.device);
  MultiplyArguments call = {};
  call.codes = reinterpret_cast<const uint8_t*>(matrix.codes);
  call.scales = reinterpret_cast<const uint8_t*>(matrix.scales);
  call.codebooks = matrix.codebooks;
  call.x = static_cast<const uint8_t*>(args.x);
  call.y = args.y;
  call.bias = args.bias;
  call.ldx = args.ldx;
  call.ldy = args.ldy;
  call.n = layout.n();
  call.k = layout.k;
  call.dependent_launch = execution.dependent_launch && device.waits_for_previous;
  const auto stream = static_cast<cudaStream_t>(execution.stream);
  for (int64_t token = 0; token < args.m; token += kMostTokens) {
    call.m = static_cast<int>(std::min(kMostTokens, args.m - token));
    if (static_cast<size_t>(call.m) <= prepared.size()) {
      launch_multiply(prepared[static_cast<size_t>(call.m) - 1], call, stream);
    } else {
      launch_multiply(recent_multiply(layout, call.m, device, matrix.device), call, stream);
    }
    call.x += kMostTokens * args.ldx * 2;
    call.y = static_cast<uint8_t*>(call.y) + kMostTokens * args.ldy * 2;
  }
}

void tile(const TiledView& view, std::span<const PackedView> segments, void* stream) {
  (void)supported_format(segments, view.dtype);
  const TiledMatrix matrix(view);
  (void)opened_device(view.device);
  const DeviceScope scope(view.device);
  expect_matrix(matrix);
  fill(matrix, segments, static_cast<cudaStream_t>(stream));
  (void)load_multiplies(matrix);
}

void untile(const TiledView& view, int segment, uint32_t* codes, void* stream) {
  const TiledMatrix matrix(view);
  (void)opened_device(view.device);
  expect_device_memory(matrix.codes, view.device, "matrix: codes");
  expect_device_memory(codes, view.device, "untile: codes");
  const DeviceScope scope(view.device);
  check(untile_codes(matrix.layout.format.bits, matrix.codes, rows_of(matrix.layout, segment), matrix.layout.k, codes,
                     static_cast<cudaStream_t>(stream)),
        "untile");
}

void dequantize(const TiledView& view, void* out, void* stream) {
  const TiledMatrix matrix(view);
  (void)opened_device(view.device);
  expect_matrix(matrix);
  expect_device_memory(out, view.device, "dequantize: out");
  const DeviceScope scope(view.device);
  const TiledLayout& layout = matrix.layout;
  const size_t codebook_bytes = size_t{2} << layout.format.bits;
  auto* weights = static_cast<std::byte*>(out);
  for (int segment = 0; segment < layout.segments; ++segment) {
    const TiledRows at = rows_of(layout, segment);
    if (at.rows == 0) continue;
    check(dequantize_tiled(layout.format.bits, matrix.codes, matrix.scales,
                           matrix.codebooks + static_cast<size_t>(segment) * codebook_bytes, at, layout.k,
                           layout.format.group_size, matrix.dtype, weights, static_cast<cudaStream_t>(stream)),
          "dequantize");
    weights += at.rows * layout.k * 2;
  }
}

void multiply(const TiledView& view, const GemmArgs& args, const Execution& execution) {
  const TiledMatrix matrix(view);
  if (args.m > 0 && matrix.layout.n() > 0) {
    (void)opened_device(view.device);
    if (execution.look_up_pointers) expect_matrix(matrix);
  }
  multiply(matrix, args, execution, {});
}

}  // namespace flute::cuda
