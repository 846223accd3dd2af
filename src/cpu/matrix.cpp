#include <utility>

#include "base/fail.hpp"
#include "cpu/quantized_weights.hpp"
#include "flute/gemm.hpp"

namespace flute {

/// What a backend makes of a matrix. A second backend derives another Impl and is chosen in from_packed.
struct Matrix::Impl {
  explicit Impl(Device where) : device(where) {}
  virtual ~Impl() = default;
  virtual int64_t n() const = 0;
  virtual int64_t k() const = 0;
  virtual int bits() const = 0;
  virtual int64_t group_size() const = 0;
  virtual int segment_count() const = 0;
  virtual size_t bytes() const = 0;
  virtual PackedMatrix to_packed(int segment) const = 0;
  virtual size_t workspace_bytes(int64_t m, DType dtype) const = 0;
  virtual void multiply(const GemmArgs& args, const Execution& execution) const = 0;

  Device device;
};

namespace {

struct CpuMatrix final : Matrix::Impl {
  CpuMatrix(Device where, std::span<const PackedView> segments, ThreadPool* threads)
      : Impl(where), weights(segments, threads) {}
  int64_t n() const override { return weights.n(); }
  int64_t k() const override { return weights.k(); }
  int bits() const override { return weights.bits(); }
  int64_t group_size() const override { return weights.group_size(); }
  int segment_count() const override { return weights.segment_count(); }
  size_t bytes() const override { return weights.bytes(); }
  PackedMatrix to_packed(int segment) const override { return weights.to_packed(segment); }
  size_t workspace_bytes(int64_t, DType) const override { return 0; }
  void multiply(const GemmArgs& args, const Execution& execution) const override {
    cpu::multiply(weights, args, execution.threads);
  }

  cpu::QuantizedWeights weights;
};

constexpr size_t kMaxSegments = 4;
constexpr int64_t kSegmentRows = 32;

void check_segments(std::span<const PackedView> segments) {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  if (segments.empty() || segments.size() > kMaxSegments) {
    fail(kInvalid, "matrix: expected 1..{} segments, found {}", kMaxSegments, segments.size());
  }
  const PackedView& first = segments.front();
  for (size_t i = 0; i < segments.size(); ++i) {
    const PackedView& segment = segments[i];
    validate(segment, fmt::format("matrix: segment {}", i));
    if (segment.k != first.k || segment.bits != first.bits || segment.group_size != first.group_size) {
      fail(kInvalid, "matrix: segment {}: expected K {}, {} bits, group size {} as in segment 0, found {}, {}, {}", i,
           first.k, first.bits, first.group_size, segment.k, segment.bits, segment.group_size);
    }
    if (i + 1 < segments.size() && segment.n % kSegmentRows != 0) {
      fail(kInvalid, "matrix: segment {}: expected a multiple of {} rows before another segment, found {}", i,
           kSegmentRows, segment.n);
    }
  }
}

}  // namespace

Matrix Matrix::from_packed(Device device, std::span<const PackedView> segments, ThreadPool* threads) {
  if (device.kind != Device::Kind::kCpu) fail(ErrorCode::kUnsupported, "this build has no CUDA backend");
  check_segments(segments);
  return Matrix(std::make_unique<CpuMatrix>(device, segments, threads));
}

Matrix::Matrix(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Matrix::Matrix(Matrix&&) noexcept = default;
Matrix& Matrix::operator=(Matrix&&) noexcept = default;
Matrix::~Matrix() = default;

Device Matrix::device() const { return impl_->device; }
int64_t Matrix::n() const { return impl_->n(); }
int64_t Matrix::k() const { return impl_->k(); }
int Matrix::bits() const { return impl_->bits(); }
int64_t Matrix::group_size() const { return impl_->group_size(); }
int Matrix::segment_count() const { return impl_->segment_count(); }
size_t Matrix::bytes() const { return impl_->bytes(); }

PackedMatrix Matrix::to_packed(int segment) const {
  if (segment < 0 || segment >= impl_->segment_count()) {
    fail(ErrorCode::kInvalidArgument, "matrix: expected a segment below {}, found {}", impl_->segment_count(), segment);
  }
  return impl_->to_packed(segment);
}

size_t gemm_workspace_bytes(const Matrix& matrix, int64_t m, DType dtype) {
  return matrix.impl().workspace_bytes(m, dtype);
}

void gemm(const Matrix& matrix, const GemmArgs& args, const Execution& execution) {
  matrix.impl().multiply(args, execution);
}

}  // namespace flute
