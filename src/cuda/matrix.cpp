#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/arguments.hpp"
#include "backend/matrix_impl.hpp"
#include "base/fail.hpp"
#include "cuda/backend.hpp"
#include "cuda/device.hpp"
#include "cuda/format.hpp"
#include "cuda/layout.hpp"
#include "cuda/multiply.hpp"
#include "cuda/tiling.hpp"

namespace flute::cuda {
namespace {

// Codes on their way through device memory at a time: enough that a copy is no slower for its beginning and end, and no
// burden beside a matrix.
constexpr int64_t kStagingBytes = int64_t{64} << 20;
// Bytes of the matrix's parts start at multiples of this, as cudaMalloc's own do.
constexpr size_t kAlignment = 256;
// 16-byte pieces of activations are fetched as they lie.
constexpr size_t kXAlignment = 16;
constexpr int64_t kXElements = 8;
// Tokens of a launch: what plans count with fits into 32 bits.
constexpr int64_t kMostTokens = int64_t{1} << 20;

// Making matrices is ordered after everything on blocking streams, so that a caller's kernel may have written the data.
const cudaStream_t kStream = cudaStreamLegacy;

/// The buffer as host memory, copied if it lies on the device.
std::vector<float> codebook_of(const PackedView& segment, int device, const std::string& what) {
  (void)in_host_memory(segment.codebook.data(), device, what + ": codebook");
  std::vector<float> values(segment.codebook.size());
  check(cudaMemcpy(values.data(), segment.codebook.data(), segment.codebook.size_bytes(), cudaMemcpyDefault), what);
  for (size_t code = 0; code < values.size(); ++code) {
    if (!std::isfinite(values[code])) {
      fail(ErrorCode::kInvalidArgument, "{}: codebook: row 0, code {}: expected a finite value, found {}", what, code,
           values[code]);
    }
  }
  return values;
}

class CudaMatrix final : public Matrix::Impl {
 public:
  CudaMatrix(Device where, std::span<const PackedView> segments, DType dtype);

  int64_t n() const override { return segment_row_[segment_count()]; }
  int64_t k() const override { return k_; }
  int bits() const override { return format_.bits; }
  int64_t group_size() const override { return format_.group_size; }
  int segment_count() const override { return static_cast<int>(codebooks_.size()); }
  size_t bytes() const override { return memory_.bytes(); }
  PackedMatrix to_packed(int segment) const override;
  size_t workspace_bytes(int64_t, DType) const override { return 0; }  // the kernels need none
  void multiply(const GemmArgs& given, const Execution& execution) const override;

 private:
  Shape shape_for(int tokens) const;
  void make_multiplies();
  void upload(const PackedView& segment, int index, uint64_t* first_bad);

  int64_t row_words() const { return int64_t{k_} / 32 * format_.bits; }
  /// Rows whose codes fill the staging memory: a multiple of 16.
  int64_t staged_rows(int64_t rows) const {
    const int64_t most = std::max<int64_t>(1, kStagingBytes / (kGroupRows * row_words() * 4)) * kGroupRows;
    return std::min(most, rows);
  }
  std::byte* codes() const { return memory_.data(); }
  std::byte* scales() const { return memory_.data() + scales_offset_; }

  Format format_;
  DType dtype_;
  DeviceLimits limits_;
  int k_ = 0, groups_ = 0, tiled_groups_ = 0;
  std::array<int, kMaxSegments + 1> segment_row_ = {};
  std::vector<std::vector<float>> codebooks_;  ///< as they were given
  DeviceBuffer memory_;                        ///< codes, scales, codebooks
  size_t scales_offset_ = 0, codebooks_offset_ = 0;
  std::array<Multiply, kMaxDecodeTokens> multiplies_;  ///< of 1, 2, ... tokens
  bool waits_for_previous_ = false;  ///< the kernels are of a target with programmatic dependent launch
};

CudaMatrix::CudaMatrix(Device where, std::span<const PackedView> segments, DType dtype)
    : Impl(where), format_(supported_format(segments, dtype)), dtype_(dtype), limits_(open_device(where.index)) {
  const DeviceScope scope(where.index);
  k_ = static_cast<int>(segments.front().k);
  groups_ = static_cast<int>(segments.front().groups());
  tiled_groups_ = flute::cuda::tiled_groups(format_.group_size, k_);
  for (size_t i = 0; i < segments.size(); ++i) {
    const std::string what = fmt::format("matrix: segment {}", i);
    segment_row_[i + 1] = segment_row_[i] + static_cast<int>(segments[i].n);
    codebooks_.push_back(codebook_of(segments[i], where.index, what));
  }
  const size_t row_groups = (static_cast<size_t>(n()) + kGroupRows - 1) / kGroupRows;
  const size_t units = row_groups * static_cast<size_t>(units_along_k(k_));
  const auto aligned = [](size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; };
  scales_offset_ = aligned(units * static_cast<size_t>(unit_bytes(format_.bits)));
  codebooks_offset_ = scales_offset_ + aligned(row_groups * static_cast<size_t>(tiled_groups_) * kScaleBytes);
  const size_t codes = size_t{1} << format_.bits;
  memory_ = DeviceBuffer(codebooks_offset_ + segments.size() * codes * 2 + kReadBeyond);
  check(cudaMemsetAsync(memory_.data(), 0, memory_.bytes(), kStream), "matrix");
  make_multiplies();

  std::vector<uint16_t> rounded(segments.size() * codes);
  for (size_t i = 0; i < segments.size(); ++i) {
    convert_from_f32(codebooks_[i].data(), rounded.data() + i * codes, dtype, codes);
  }
  check(cudaMemcpyAsync(memory_.data() + codebooks_offset_, rounded.data(), rounded.size() * 2, cudaMemcpyDefault,
                        kStream),
        "matrix: codebooks");
  const DeviceBuffer bad(sizeof(uint64_t));
  auto* const first_bad = reinterpret_cast<uint64_t*>(bad.data());
  for (size_t i = 0; i < segments.size(); ++i) upload(segments[i], static_cast<int>(i), first_bad);
  check(cudaStreamSynchronize(kStream), "matrix");
}

Shape CudaMatrix::shape_for(int tokens) const {
  Shape shape = {.m = tokens, .n = static_cast<int>(n()), .k = k_, .segments = segment_count()};
  std::copy(segment_row_.begin(), segment_row_.end(), shape.segment_row);
  return shape;
}

/// Plans for up to kMaxDecodeTokens tokens, and all kernels loaded: a call has nothing to set up.
void CudaMatrix::make_multiplies() {
  waits_for_previous_ = kernel_target(device.index) >= 90;
  if (n() == 0) return;
  for (int m = 1; m <= kMaxDecodeTokens; ++m) {
    multiplies_[m - 1] = Multiply(make_multiply_plan(shape_for(m), format_, limits_), format_);
    load_kernels(multiplies_[m - 1], limits_);
  }
  if (limits_.wgmma) load_prefill_kernels(format_, limits_);
}

void CudaMatrix::upload(const PackedView& segment, int index, uint64_t* first_bad) {
  if (segment.n == 0) return;
  const std::string what = fmt::format("matrix: segment {}", index);
  const bool host_codes = in_host_memory(segment.codes.data(), device.index, what + ": codes");
  const bool host_scales = in_host_memory(segment.scales, device.index, what + ": scales");
  const int64_t rows_each = staged_rows(segment.n);
  const size_t code_bytes = static_cast<size_t>(row_words()) * 4;
  const size_t scale_bytes = static_cast<size_t>(groups_) * dtype_size(segment.scale_dtype);
  const DeviceBuffer staged_codes(host_codes ? static_cast<size_t>(rows_each) * code_bytes : 0);
  const DeviceBuffer staged_scales(host_scales ? static_cast<size_t>(rows_each) * scale_bytes : 0);
  check(cudaMemsetAsync(first_bad, 0xff, sizeof(uint64_t), kStream), what);  // kNoneBad
  for (int64_t row = 0; row < segment.n; row += rows_each) {
    const int64_t rows = std::min(rows_each, segment.n - row);
    const auto here = [&](const void* data, size_t row_bytes, const DeviceBuffer& staged) -> const void* {
      const std::byte* from = static_cast<const std::byte*>(data) + static_cast<size_t>(row) * row_bytes;
      if (staged.bytes() == 0) return from;
      check(cudaMemcpyAsync(staged.data(), from, static_cast<size_t>(rows) * row_bytes, cudaMemcpyDefault, kStream),
            what);
      return staged.data();
    };
    const void* staged = here(segment.codes.data(), code_bytes, staged_codes);
    const void* staged_scale = here(segment.scales, scale_bytes, staged_scales);
    const TiledRows at = {rows, segment_row_[index] + row, n()};
    check(tile_codes(format_.bits, static_cast<const uint32_t*>(staged), at, k_, codes(), kStream), what);
    check(tile_scales(staged_scale, segment.scale_dtype, at, groups_, tiled_groups_, dtype_, scales(), first_bad, row,
                      kStream),
          what);
  }
  uint64_t bad = kNoneBad;
  check(cudaMemcpyAsync(&bad, first_bad, sizeof(bad), cudaMemcpyDefault, kStream), what);
  check(cudaStreamSynchronize(kStream), what);  // the staging memory goes, too
  if (bad == kNoneBad) return;
  alignas(4) std::byte scale[4];
  const size_t size = dtype_size(segment.scale_dtype);
  check(cudaMemcpy(scale, static_cast<const std::byte*>(segment.scales) + bad * size, size, cudaMemcpyDefault), what);
  fail(ErrorCode::kInvalidArgument, "{}: scale of row {}, group {}: expected a finite value, found {}", what,
       bad / static_cast<uint64_t>(groups_), bad % static_cast<uint64_t>(groups_),
       load_as_f32(scale, segment.scale_dtype, 0));
}

PackedMatrix CudaMatrix::to_packed(int segment) const {
  const DeviceScope scope(device.index);
  PackedMatrix matrix;
  matrix.n = segment_row_[segment + 1] - segment_row_[segment];
  matrix.k = k_;
  matrix.bits = format_.bits;
  matrix.group_size = format_.group_size;
  matrix.scale_dtype = dtype_;
  matrix.codebook = codebooks_[segment];
  matrix.codes.resize(static_cast<size_t>(matrix.n * row_words()));
  matrix.scales.resize(static_cast<size_t>(matrix.n) * groups_ * 2);
  if (matrix.n == 0) return matrix;
  const int64_t rows_each = staged_rows(matrix.n);
  const DeviceBuffer packed_codes(static_cast<size_t>(rows_each * row_words()) * 4);
  const DeviceBuffer packed_scales(static_cast<size_t>(rows_each) * groups_ * 2);
  for (int64_t row = 0; row < matrix.n; row += rows_each) {
    const int64_t rows = std::min(rows_each, matrix.n - row);
    const TiledRows at = {rows, segment_row_[segment] + row, n()};
    check(untile_codes(format_.bits, codes(), at, k_, reinterpret_cast<uint32_t*>(packed_codes.data()), kStream),
          "to_packed");
    check(untile_scales(scales(), at, groups_, packed_scales.data(), kStream), "to_packed");
    check(cudaMemcpyAsync(matrix.codes.data() + row * row_words(), packed_codes.data(),
                          static_cast<size_t>(rows * row_words()) * 4, cudaMemcpyDefault, kStream),
          "to_packed");
    check(cudaMemcpyAsync(matrix.scales.data() + static_cast<size_t>(row) * groups_ * 2, packed_scales.data(),
                          static_cast<size_t>(rows) * groups_ * 2, cudaMemcpyDefault, kStream),
          "to_packed");
    check(cudaStreamSynchronize(kStream), "to_packed");
  }
  return matrix;
}

void CudaMatrix::multiply(const GemmArgs& given, const Execution& execution) const {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  const GemmArgs args = checked_arguments(given, n(), k());
  if (args.dtype != dtype_) {
    fail(kInvalid, "gemm: expected dtype {}, which the matrix was made for, found {}", dtype_name(dtype_),
         dtype_name(args.dtype));
  }
  if (args.m == 0 || n() == 0) return;
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
  expect_device_memory(args.x, device.index, "gemm: x");
  expect_device_memory(args.y, device.index, "gemm: y");
  if (args.bias != nullptr) expect_device_memory(args.bias, device.index, "gemm: bias");

  const DeviceScope scope(device.index);
  MultiplyArguments call = {};
  call.codes = reinterpret_cast<const uint8_t*>(codes());
  call.scales = reinterpret_cast<const uint8_t*>(scales());
  call.codebooks = memory_.data() + codebooks_offset_;
  call.x = static_cast<const uint8_t*>(args.x);
  call.y = args.y;
  call.bias = args.bias;
  call.ldx = args.ldx;
  call.ldy = args.ldy;
  call.n = static_cast<int>(n());
  call.k = k_;
  call.dependent_launch = execution.dependent_launch && waits_for_previous_;
  const auto stream = static_cast<cudaStream_t>(execution.stream);
  for (int64_t token = 0; token < args.m; token += kMostTokens) {
    call.m = static_cast<int>(std::min(kMostTokens, args.m - token));
    if (call.m <= kMaxDecodeTokens) {
      launch_multiply(multiplies_[call.m - 1], call, stream);
    } else {
      launch_multiply(Multiply(make_multiply_plan(shape_for(call.m), format_, limits_), format_), call, stream);
    }
    call.x += kMostTokens * args.ldx * 2;
    call.y = static_cast<uint8_t*>(call.y) + kMostTokens * args.ldy * 2;
  }
}

}  // namespace

std::unique_ptr<Matrix::Impl> make_matrix(Device device, std::span<const PackedView> segments,
                                          const MatrixOptions& options) {
  return std::make_unique<CudaMatrix>(device, segments, options.dtype);
}

void workspace_init(Device device, void* workspace, size_t bytes, void* stream) {
  (void)open_device(device.index);
  if (bytes == 0) return;
  expect_device_memory(workspace, device.index, "workspace");
  const DeviceScope scope(device.index);
  check(cudaMemsetAsync(workspace, 0, bytes, static_cast<cudaStream_t>(stream)), "workspace");
}

}  // namespace flute::cuda
