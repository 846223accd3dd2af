#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "flute/dtype.hpp"
#include "flute/packed.hpp"

namespace flute {

class ThreadPool;

/// Where a matrix lives and a multiply runs.
struct Device {
  enum class Kind : uint8_t { kCpu = 0, kCuda = 1 };
  Kind kind = Kind::kCpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

/// A quantized matrix made ready (tiled) for one device: up to 4 layers stacked along N, each with a codebook of its
/// own; bits and group size common to all; inner boundaries at multiples of 32 rows.
/// Immutable after construction, so any number of threads may multiply with it.
class Matrix {
 public:
  /// Copies the segments into the device's layout. Throws kInvalidArgument on bad or incompatible segments,
  /// kUnsupported when the device or this build cannot take them.
  static Matrix from_packed(Device device, std::span<const PackedView> segments, ThreadPool* threads = nullptr);

  Matrix(Matrix&&) noexcept;
  Matrix& operator=(Matrix&&) noexcept;
  ~Matrix();

  Device device() const;
  int64_t n() const;  ///< rows of all segments together
  int64_t k() const;
  int bits() const;
  int64_t group_size() const;
  int segment_count() const;
  size_t bytes() const;  ///< memory held on the device

  /// The segment's packed layout again, exactly.
  PackedMatrix to_packed(int segment) const;

  struct Impl;  ///< backend's own
  const Impl& impl() const { return *impl_; }

 private:
  explicit Matrix(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Y[m, n] = X[m, k] * W[n, k]^T (+ bias[n]). Row-major; leading dimensions in elements.
struct GemmArgs {
  int64_t m = 0;               ///< tokens; 0 is a no-op
  const void* x = nullptr;     ///< [m, k], `dtype`
  int64_t ldx = 0;             ///< >= k; 0 means k
  void* y = nullptr;           ///< [m, n], `dtype`
  int64_t ldy = 0;             ///< >= n; 0 means n
  const void* bias = nullptr;  ///< [n], `dtype`, or null
  DType dtype = DType::kF32;   ///< of x, y and bias
};

/// What a call runs with. The CPU uses `threads` (null: the calling thread alone); CUDA uses `stream` and `workspace`.
struct Execution {
  ThreadPool* threads = nullptr;
  void* stream = nullptr;  ///< cudaStream_t
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
};

/// Bytes of workspace that gemm needs for m tokens (0 on the CPU).
size_t gemm_workspace_bytes(const Matrix& matrix, int64_t m, DType dtype);

/// Multiplies. Table and scale are rounded to `dtype`, sums are fp32, one rounding at the end (docs/format.md,
/// "value"). The same call gives the same bits, whatever the number of threads.
void gemm(const Matrix& matrix, const GemmArgs& args, const Execution& execution = {});

}  // namespace flute
