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

/// What a matrix is made for and with.
struct MatrixOptions {
  /// CUDA: of the activations, fp16 or bf16. The device keeps codebooks and scales rounded to it, and gemm takes no
  /// other. The CPU takes every dtype and ignores this.
  DType dtype = DType::kF16;
  ThreadPool* threads = nullptr;  ///< CPU; null: the calling thread alone
};

/// A quantized matrix made ready (tiled) for one device: up to 4 layers stacked along N, each with a codebook of its
/// own; bits and group size common to all; inner boundaries at multiples of 32 rows.
/// Immutable after construction, so any number of threads may multiply with it.
class Matrix {
 public:
  /// Copies the segments into the device's layout. Throws kInvalidArgument on bad or incompatible segments,
  /// kUnsupported when the device or this build cannot take them: CUDA takes 2, 3 and 4 bits with one codebook a
  /// segment and no offsets. CUDA: codes, scales and codebooks may lie in host memory or on the device itself, each for
  /// itself; on return they have been read. Data that a kernel writes must be complete, or in the order of the legacy
  /// default stream.
  static Matrix from_packed(Device device, std::span<const PackedView> segments, const MatrixOptions& options = {});

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

  /// The segment's packed layout again, in host memory: codes and codebook exactly, and the CPU's scales too. CUDA
  /// gives the scales that it holds, of the matrix's dtype: the same values where they were given in that dtype.
  PackedMatrix to_packed(int segment) const;

  struct Impl;  ///< backend's own
  const Impl& impl() const { return *impl_; }

 private:
  explicit Matrix(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Y[m, n] = X[m, k] * W[n, k]^T (+ bias[n]). Row-major; leading dimensions in elements. CUDA: x, y and bias lie in
/// memory of the matrix's device, or managed; x is 16-byte aligned and ldx a multiple of 8, y and bias as elements.
struct GemmArgs {
  int64_t m = 0;               ///< tokens; 0 is a no-op
  const void* x = nullptr;     ///< [m, k], `dtype`
  int64_t ldx = 0;             ///< >= k; 0 means k
  void* y = nullptr;           ///< [m, n], `dtype`
  int64_t ldy = 0;             ///< >= n; 0 means n
  const void* bias = nullptr;  ///< [n], `dtype`, or null
  DType dtype = DType::kF32;   ///< of x, y and bias
};

/// What a call runs with. The CPU uses `threads` (null: the calling thread alone); CUDA uses the others.
struct Execution {
  ThreadPool* threads = nullptr;
  void* stream = nullptr;     ///< cudaStream_t
  void* workspace = nullptr;  ///< gemm_workspace_bytes, made ready by workspace_init; never for two streams at a time
  size_t workspace_bytes = 0;
  /// Start while the stream's previous kernel is ending (programmatic dependent launch, compute capability 9.0 and
  /// later): weights are fetched meanwhile; x, y, bias and workspace are not touched before it has ended.
  bool dependent_launch = true;
  /// CUDA is asked of each pointer whether it is memory of the matrix's device, which takes a microsecond or two in
  /// all. Where a caller knows that they are, it may do without: a wrong one is then a fault on the device.
  bool look_up_pointers = true;
};

/// Bytes of workspace that gemm needs for m tokens: a pure function; 0 on the CPU.
size_t gemm_workspace_bytes(const Matrix& matrix, int64_t m, DType dtype);

/// Makes a workspace of the device ready, once, before its first use; every multiply leaves it ready. Asynchronous on
/// `stream` (a cudaStream_t). Nothing to do on the CPU.
void workspace_init(Device device, void* workspace, size_t bytes, void* stream = nullptr);

/// Multiplies. Table and scale are rounded to `dtype`, sums are fp32, one rounding at the end (docs/format.md,
/// "value"). The same call gives the same bits, whatever the number of threads.
/// CUDA: asynchronous on the stream; neither allocates nor synchronises, and may be captured in a graph from the first
/// call on. Everything that can be refused is, with kInvalidArgument, before anything is launched.
void gemm(const Matrix& matrix, const GemmArgs& args, const Execution& execution = {});

}  // namespace flute
