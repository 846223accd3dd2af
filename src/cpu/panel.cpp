// Many tokens: a panel of weights is dequantized once and multiplied with all tokens by a register-blocked kernel.
#include "cpu/kernel_sets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/panel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/lookup-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace flute::cpu {
namespace HWY_NAMESPACE {

// Tokens in a tile: 12 x 2 sums, 2 weights and a value of x fit 32 registers; 6 x 2 fit 16.
#if (HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86) || HWY_ARCH_ARM_A64
constexpr int kTileTokens = 12;
#else
constexpr int kTileTokens = 6;
#endif

template <int kBits, int J, class Table>
HWY_INLINE void dequantize_unrolled(const Table& table, const uint32_t* words, F scale, float* panel) {
  hn::StoreU(hn::Mul(table(code_at<kBits, J>(words)), scale), Floats(), panel + J * kBlockRows);
  if constexpr (J + 1 < kChunk) dequantize_unrolled<kBits, J + 1>(table, words, scale, panel);
}

/// Looks codes up one after the other: a loop, since what limits it is the gather.
template <int kBits, bool kPerRow>
HWY_INLINE void dequantize_codes(const Gather<kBits, kPerRow>& table, const uint32_t* words, F scale, float* panel) {
  for (int j = 0; j < kChunk; ++j) {
    hn::StoreU(hn::Mul(table(code_at<kBits>(words, j)), scale), Floats(), panel + j * kBlockRows);
  }
}

template <int kBits>
HWY_INLINE void dequantize_codes(const Lookup<kBits>& table, const uint32_t* words, F scale, float* panel) {
  dequantize_unrolled<kBits, 0>(table, words, scale, panel);
}

template <int kBits, class Table>
void dequantize_blocks(const QuantizedTile& tile, int64_t blocks, int64_t begin, int64_t end, float* panel) {
  for (int64_t row = 0; row < blocks * kBlockRows; row += kLanes) {
    const int64_t block = row / kBlockRows, within = row % kBlockRows;
    const Table table(tile.table + (tile.per_row_table ? (block * kBlockRows << kBits) + within : 0));
    const uint32_t* words = tile.codes + (block * tile.chunks + begin) * kBits * kBlockRows + within;
    float* values = panel + block * (end - begin) * kChunk * kBlockRows + within;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t group = chunk / tile.group_chunks - begin / tile.group_chunks;
      const F scale = load_floats(tile.scales, tile.scale_dtype, group * tile.scale_stride + row);
      dequantize_codes<kBits>(table, words, scale, values);
      words += kBits * kBlockRows;
      values += kChunk * kBlockRows;
    }
  }
}

template <int kBits>
void dequantize_bits(const QuantizedTile& tile, int64_t blocks, int64_t begin, int64_t end, float* panel) {
  if (tile.per_row_table) {
    dequantize_blocks<kBits, Gather<kBits, true>>(tile, blocks, begin, end, panel);
  } else if constexpr (kBits <= kPermuteBits) {
    dequantize_blocks<kBits, Lookup<kBits>>(tile, blocks, begin, end, panel);
  } else {
    dequantize_blocks<kBits, Gather<kBits, false>>(tile, blocks, begin, end, panel);
  }
}

void dequantize(const QuantizedTile& tile, int64_t blocks, int64_t begin, int64_t end, float* panel) {
  constexpr decltype(&dequantize_bits<1>) kByBits[] = {dequantize_bits<1>, dequantize_bits<2>, dequantize_bits<3>,
                                                       dequantize_bits<4>, dequantize_bits<5>, dequantize_bits<6>,
                                                       dequantize_bits<7>, dequantize_bits<8>};
  kByBits[tile.bits - 1](tile, blocks, begin, end, panel);
}

/// kVectorCount vectors of rows, 16 floats apart for each k, times kTokens tokens.
template <int kVectorCount, int kTokens>
void multiply_tile(const float* const (&weights)[kVectorCount], int64_t k, const float* x,
                   float* const (&y)[kVectorCount], int64_t ldy, bool accumulate) {
  const Floats d;
  F sums[kTokens][kVectorCount];
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kVectorCount; ++v) sums[t][v] = hn::Zero(d);
  }
  for (int64_t i = 0; i < k; ++i) {
    F w[kVectorCount];
    for (int v = 0; v < kVectorCount; ++v) w[v] = hn::LoadU(d, weights[v] + i * kBlockRows);
    for (int t = 0; t < kTokens; ++t) {
      const F xk = hn::Set(d, x[i * kTileTokens + t]);
      for (int v = 0; v < kVectorCount; ++v) sums[t][v] = hn::MulAdd(w[v], xk, sums[t][v]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kVectorCount; ++v) {
      // A panel's sum begins at zero: fp32 then loses by the length of a panel and their number, not by all of K.
      const F sum = accumulate ? hn::Add(hn::LoadU(d, y[v] + t * ldy), sums[t][v]) : sums[t][v];
      hn::StoreU(sum, d, y[v] + t * ldy);
    }
  }
}

template <int kTokens>
void multiply_tokens(const float* panel, int64_t blocks, int64_t k, const float* x, float* y, int64_t ldy,
                     bool accumulate) {
  const int64_t rows = blocks * kBlockRows;
  const auto weights_of = [&](int64_t row) { return panel + row / kBlockRows * k * kBlockRows + row % kBlockRows; };
  int64_t row = 0;
  for (; row + 2 * kLanes <= rows; row += 2 * kLanes) {
    const float* const weights[] = {weights_of(row), weights_of(row + kLanes)};
    float* const targets[] = {y + row, y + row + kLanes};
    multiply_tile<2, kTokens>(weights, k, x, targets, ldy, accumulate);
  }
  for (; row < rows; row += kLanes) {
    const float* const weights[] = {weights_of(row)};
    float* const targets[] = {y + row};
    multiply_tile<1, kTokens>(weights, k, x, targets, ldy, accumulate);
  }
}

void multiply(const float* panel, int64_t blocks, int64_t k, const float* x, int tokens, float* y, int64_t ldy,
              bool accumulate) {
  constexpr int kThird = kTileTokens / 3;
  if (tokens <= kThird) return multiply_tokens<kThird>(panel, blocks, k, x, y, ldy, accumulate);
  if (tokens <= 2 * kThird) return multiply_tokens<2 * kThird>(panel, blocks, k, x, y, ldy, accumulate);
  multiply_tokens<kTileTokens>(panel, blocks, k, x, y, ldy, accumulate);
}

void fill_panel_kernels(Kernels& table) {
  table.tile_tokens = kTileTokens;
  table.dequantize = dequantize;
  table.multiply = multiply;
}

}  // namespace HWY_NAMESPACE
}  // namespace flute::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flute::cpu {
FillKernels panel_kernels(int64_t target) { return FLUTE_FOR_TARGET(target, fill_panel_kernels); }
}  // namespace flute::cpu
#endif
