#pragma once
#include <cstdint>
#include <memory>
#include <span>

#include "flute/gemm.hpp"

namespace flute::cpu {

/// One plain (unquantized) weight matrix, not owned: [n, k] row-major.
struct DenseView {
  int64_t n = 0, k = 0;
  DType dtype = DType::kBF16;
  const void* data = nullptr;  ///< no alignment needed
};

class DenseWeights;

/// Plain weights made ready for the CPU's multiply, several stacked along N (any number of rows each); the runtime runs
/// unquantized layers through it. Keeps the storage dtype (fp32 where segments differ), so that decode reads no more
/// bytes than the file holds. K is a multiple of 32.
/// Weights are used as they are stored, whatever the activations.
class DenseMatrix {
 public:
  /// Copies the segments. Throws kInvalidArgument on bad or incompatible ones.
  explicit DenseMatrix(std::span<const DenseView> segments, ThreadPool* threads = nullptr);
  DenseMatrix(DenseMatrix&&) noexcept;
  DenseMatrix& operator=(DenseMatrix&&) noexcept;
  ~DenseMatrix();
  int64_t n() const;
  int64_t k() const;
  size_t bytes() const;
  /// The same contract as flute::gemm.
  void gemm(const GemmArgs& args, ThreadPool* threads) const;

 private:
  std::unique_ptr<DenseWeights> weights_;
};

}  // namespace flute::cpu
