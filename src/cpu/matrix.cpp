#include "cpu/matrix.hpp"

#include "backend/matrix_impl.hpp"
#include "cpu/quantized_weights.hpp"

namespace flute::cpu {
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

  QuantizedWeights weights;
};

}  // namespace

std::unique_ptr<Matrix::Impl> make_matrix(Device device, std::span<const PackedView> segments,
                                          const MatrixOptions& options) {
  return std::make_unique<CpuMatrix>(device, segments, options.threads);
}

}  // namespace flute::cpu
