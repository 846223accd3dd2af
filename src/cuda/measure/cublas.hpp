#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device.hpp"
#include "flute/dtype.hpp"

namespace flute::cuda {

/// cuBLAS as found at run time, for comparison; nothing links it.
class Cublas {
 public:
  /// Calls go to `stream`. Without a library found() is false.
  explicit Cublas(cudaStream_t stream);
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  bool found() const { return handle_ != nullptr; }
  /// y[m, n] = x[m, k] * w[n, k]^T in fp16 or bf16, fp32 sums. Asynchronous, and may be captured.
  void multiply(const void* w, const void* x, void* y, int64_t m, int64_t n, int64_t k, DType dtype) const;

 private:
  void* library_ = nullptr;
  void* handle_ = nullptr;
  void* gemm_ = nullptr;
  DeviceBuffer workspace_;
};

}  // namespace flute::cuda
