#include <utility>

#include "backend/matrix_impl.hpp"
#include "backend/segments.hpp"
#include "base/fail.hpp"
#include "cpu/matrix.hpp"
#include "cuda/backend.hpp"
#include "flute/gemm.hpp"

namespace flute {
Matrix Matrix::from_packed(Device device, std::span<const PackedView> segments, const MatrixOptions& options) {
  const bool cpu = device.kind == Device::Kind::kCpu;
  check_segments(segments, /*check_values=*/cpu);
  return Matrix(cpu ? cpu::make_matrix(device, segments, options) : cuda::make_matrix(device, segments, options));
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

void workspace_init(Device device, void* workspace, size_t bytes, void* stream) {
  if (device.kind == Device::Kind::kCuda) cuda::workspace_init(device, workspace, bytes, stream);
}

void gemm(const Matrix& matrix, const GemmArgs& args, const Execution& execution) {
  const size_t needed = matrix.impl().workspace_bytes(args.m, args.dtype);
  if (execution.workspace_bytes < needed) {
    fail(ErrorCode::kInvalidArgument, "gemm: expected a workspace of {} bytes for {} tokens, found {}", needed, args.m,
         execution.workspace_bytes);
  }
  matrix.impl().multiply(args, execution);
}

}  // namespace flute
