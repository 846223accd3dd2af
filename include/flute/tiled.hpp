#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "flute/gemm.hpp"

namespace flute {

/// A quantized matrix in CUDA's tiled layout in device memory that stays its owner's, a framework's tensors say: what a
/// Matrix on a CUDA device holds, in three buffers. Each is 16-byte aligned and has the bytes that tiled_bytes says.
struct TiledView {
  int64_t k = 0;                             ///< input features, a multiple of 32
  int bits = 4;                              ///< 2, 3, 4
  int64_t group_size = 64;                   ///< 32, 64, 128, 256, or -1
  DType dtype = DType::kF16;                 ///< fp16 or bf16: of scales and codebooks, and of the activations
  int device = 0;                            ///< CUDA's number
  int segment_count = 1;                     ///< 1..4 matrices stacked along N, each with a codebook of its own
  std::array<int64_t, 4> segment_rows = {};  ///< multiples of 32 but for the last
  void* codes = nullptr;
  void* scales = nullptr;
  void* codebooks = nullptr;  ///< [segment_count, 2^bits]

  int64_t n() const {
    int64_t n = 0;
    for (int i = 0; i < segment_count; ++i) n += segment_rows[static_cast<size_t>(i)];
    return n;
  }
};

/// Bytes of the buffers, padding included. What device and pointers are does not matter.
struct TiledBytes {
  size_t codes = 0, scales = 0, codebooks = 0;
};
TiledBytes tiled_bytes(const TiledView& matrix);

/// Fills the buffers from packed segments, one of which may lie in host memory and another on the device, as with
/// Matrix::from_packed. `codes` may be null, or both `scales` and `codebooks`: that part is left as it is. In the order
/// of `stream` (a cudaStream_t), which it waits for. Also loads the kernels for the matrix.
void tile(const TiledView& matrix, std::span<const PackedView> segments, void* stream = nullptr);

/// A segment's codes as they were packed, to device memory [rows, k * bits / 32]. Asynchronous on the stream.
void untile(const TiledView& matrix, int segment, uint32_t* codes, void* stream = nullptr);

/// The matrix that the codes stand for, to device memory [n, k] of its dtype, 16-byte aligned: what gemm multiplies
/// with, bit for bit. Asynchronous on the stream.
void dequantize(const TiledView& matrix, void* out, void* stream = nullptr);

/// gemm with such a matrix, to the same bits as with a Matrix of the same segments. It needs no workspace. The first
/// call after a start of the process may be captured in a graph where tile() has been called for a matrix of these
/// sizes; otherwise it loads kernels.
void gemm(const TiledView& matrix, const GemmArgs& args, const Execution& execution = {});

}  // namespace flute
