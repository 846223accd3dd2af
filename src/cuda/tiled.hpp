#pragma once
#include <cuda_runtime.h>

#include <span>

#include "cuda/multiply.hpp"
#include "cuda/tiled_layout.hpp"
#include "flute/gemm.hpp"
#include "flute/packed.hpp"

namespace flute::cuda {

/// A tiled matrix in memory of a device, its sizes worked out. It owns nothing.
struct TiledMatrix {
  TiledLayout layout;
  DType dtype = DType::kF16;
  int device = 0;
  std::byte *codes = nullptr, *scales = nullptr, *codebooks = nullptr;

  TiledMatrix() = default;
  explicit TiledMatrix(const TiledView& view);
};

/// Fills the parts that there are from segments of its sizes, in the order of the stream, which it waits for.
void fill(const TiledMatrix& matrix, std::span<const PackedView> segments, cudaStream_t stream);

/// Packed codes and scales of a segment again, in host memory; the codebook is left to the caller.
PackedMatrix packed_of(const TiledMatrix& matrix, int segment);

/// Plans for 1, 2, .. kMaxDecodeTokens tokens, whose kernels and those for more are then loaded: a call has nothing to
/// set up.
std::vector<Multiply> load_multiplies(const TiledMatrix& matrix);

/// flute::gemm. `prepared`: of load_multiplies, or empty: then the call's plan is one that the
/// thread remembers, or is made, and its kernels are loaded.
void multiply(const TiledMatrix& matrix, const GemmArgs& args, const Execution& execution,
              std::span<const Multiply> prepared);

}  // namespace flute::cuda
