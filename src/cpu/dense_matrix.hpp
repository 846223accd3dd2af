#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "flute/gemm.hpp"

namespace flute::cpu {

/// One plain (unquantized) weight matrix, not owned: [n, k] row-major.
struct DenseView {
  int64_t n = 0, k = 0;
  DType dtype = DType::kBF16;
  const void* data = nullptr;  ///< no alignment needed
};

/// Plain weights made ready for the CPU's multiply, several stacked along N; the runtime runs unquantized layers
/// through it. Keeps the storage dtype, so that decode reads no more bytes than the file holds.
class DenseMatrix {
 public:
  explicit DenseMatrix(std::span<const DenseView> segments, ThreadPool* threads = nullptr);
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  size_t bytes() const;
  /// The same contract as flute::gemm.
  void gemm(const GemmArgs& args, ThreadPool* threads) const;

 private:
  int64_t n_ = 0, k_ = 0;
  DType dtype_ = DType::kBF16;
  std::vector<uint32_t> storage_;  ///< layout: see dense_matrix.cpp
};

}  // namespace flute::cpu
