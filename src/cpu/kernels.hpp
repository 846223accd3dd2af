#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "flute/dtype.hpp"

namespace flute::cpu {

constexpr int64_t kBlockRows = 16;  ///< rows side by side in a tile: the lanes of a 512-bit vector
constexpr int64_t kChunk = 32;      ///< codes that fill `bits` words
constexpr int64_t kTaskBlocks = 4;  ///< blocks that one task multiplies
constexpr int64_t kTaskRows = kTaskBlocks * kBlockRows;
constexpr size_t kCodesSlack = 4;    ///< bytes read beyond the last word, by loads that begin inside a word
constexpr int kMaxDecodeTokens = 8;  ///< tokens that one pass over the codes serves

/// Consecutive blocks of one segment in the tiled layout (docs/cpu-kernels.md).
struct QuantizedTile {
  int bits = 0;
  int64_t chunks = 0;               ///< K / 32
  int64_t groups = 0;               ///< scales of a row
  int64_t group_chunks = 0;         ///< chunks that share a scale
  int64_t scale_stride = 0;         ///< from a group's scales to the next group's: 16 for each block of the task
  const uint32_t* codes = nullptr;  ///< [blocks][chunks][bits][16]; kCodesSlack bytes beyond may be read
  const void* scales = nullptr;     ///< [groups][scale_stride], of which [blocks][16] are the tile's
  DType scale_dtype = DType::kF32;
  const float* table = nullptr;  ///< [2^bits], or [blocks][2^bits][16] where `per_row_table`
  bool per_row_table = false;
};

/// Consecutive blocks of plain weights, [blocks][k][16].
struct DenseTile {
  int64_t k = 0;
  DType dtype = DType::kF32;
  const void* weights = nullptr;
};

/// What one instruction set offers. Every kernel sums over k in an order that depends on its arguments' shapes alone.
struct Kernels {
  const char* name;
  int tile_tokens;  ///< tokens in a tile of packed activations
  int decode_bits;  ///< most bits that decode() knows: what this set's permutes look up

  /// y[t*kTaskRows + r] = sum over k of x[t*ldx + k] * W[r, k], t < tokens = 1, 2, 4 or 8, r < blocks * 16 rows;
  /// other rows of y may hold anything. The tile has one table, of at most decode_bits.
  void (*decode)(const QuantizedTile& tile, int64_t blocks, const float* x, int64_t ldx, int tokens, float* y);
  void (*decode_dense)(const DenseTile& tile, int64_t blocks, const float* x, int64_t ldx, int tokens, float* y);

  /// panel[block][k - k0][r] = table * scale for row r of each block and k in chunks [begin, end), k0 = 32*begin. The
  /// tile's scales begin with the group of chunk `begin`.
  void (*dequantize)(const QuantizedTile& tile, int64_t blocks, int64_t begin, int64_t end, float* panel);

  /// y[t*ldy + r] = (accumulate ? itself : 0) + sum over k of x[k*tile_tokens + t] * panel[block][k][r % 16], t <
  /// tokens rounded up to a third of tile_tokens, r < blocks * 16.
  void (*multiply)(const float* panel, int64_t blocks, int64_t k, const float* x, int tokens, float* y, int64_t ldy,
                   bool accumulate);

  /// Reads [data, data + bytes) once (all but a last part of less than 512 bytes); the result keeps the loads alive.
  uint32_t (*read)(const std::byte* data, size_t bytes);
  /// Runs `rounds` x chain_flops floating-point operations in independent chains of multiply-adds.
  float (*multiply_add_chains)(int64_t rounds);
  int chain_flops;
};

/// The kernels in use: the best that this machine runs, or what FLUTE_CPU_TARGET names (avx512, avx2, sse4, neon,
/// base), where the machine has it.
const Kernels& kernels();

/// Every set that this build holds and this machine runs, best first.
std::span<const Kernels* const> available_kernels();

/// Makes kernels() return `chosen` from now on (null: the default again). For tests and benchmarks; not to be called
/// while another thread multiplies.
void choose_kernels(const Kernels* chosen);

}  // namespace flute::cpu
