// Few tokens: codes are looked up straight out of the tiles, every value is used for all tokens, and nothing but the
// results is written. Sums of a group are scaled as a whole: one multiply-add for each group instead of each weight.
#include <type_traits>

#include "cpu/kernel_sets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/decode.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "cpu/lookup-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace flute::cpu {
namespace HWY_NAMESPACE {

// Vectors of rows that share each x: enough independent sums to hide the latency of FMA (4 cycles, 2 a cycle), few
// enough for 32 (AVX-512, NEON) or 16 registers.
constexpr int vectors_for(int tokens) {
#if (HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86) || HWY_ARCH_ARM_A64
  return tokens == 8 ? 2 : 4;
#else
  return tokens <= 2 ? 4 : 8 / tokens;
#endif
}

// How far ahead the codes are fetched: 2 KB of each stream. A core's own prefetchers stop at each page (1.14 ms
// without, 0.98 with: docs/cpu-kernels.md).
constexpr int64_t kPrefetchWords = 512;

// Chunks in a sum that begins at zero, where a group is longer: fp32 loses by the length of a sum.
constexpr int64_t kSumChunks = 8;

/// Vectors past the last row compute that of the last vector again: y has room for a whole task.
HWY_INLINE int64_t existing_row(int64_t row, int64_t rows) { return row < rows ? row : rows - kLanes; }

template <int kVectorCount, int kTokens>
struct Sums {
  // One token: even and odd k apart, for twice the independent sums.
  static constexpr int kChains = kTokens == 1 ? 2 : 1;
  F values[kVectorCount][kTokens][kChains];

  HWY_INLINE Sums() {}  // an implicit one is compiled for the baseline, where g++ refuses the vectors of NEON with AES

  HWY_INLINE void clear() {
    for (auto& vector : values) {
      for (auto& token : vector) {
        for (F& value : token) value = hn::Zero(Floats());
      }
    }
  }
  HWY_INLINE F total(int v, int t) const {
    return kChains == 1 ? values[v][t][0] : hn::Add(values[v][t][0], values[v][t][kChains - 1]);
  }
};

/// Fetches ahead, in step J of kSteps for a chunk, the share of its lines that falls to this step: all at once they
/// would hold every fill buffer of the first-level cache, and the loads of x would wait for one.
template <int kBits, int J, int kSteps, int kVectorCount>
HWY_INLINE void prefetch_share(const uint32_t* const (&words)[kVectorCount]) {
  constexpr int kVectorsOfBlock = static_cast<int>(kVectors) < kVectorCount ? static_cast<int>(kVectors) : kVectorCount;
  constexpr int kLines = kVectorCount / kVectorsOfBlock * kBits;
  for (int line = J * kLines / kSteps; line < (J + 1) * kLines / kSteps; ++line) {
    hwy::Prefetch(words[line / kBits * kVectorsOfBlock] + kPrefetchWords + line % kBits * kBlockRows);
  }
}

/// Adds x * value of code J and those after it in the chunk.
template <int kBits, int J, int kVectorCount, int kTokens, class Table>
HWY_INLINE void add_codes(const Table& table, const uint32_t* const (&words)[kVectorCount], const float* x, int64_t ldx,
                          Sums<kVectorCount, kTokens>& sums) {
  constexpr int kChain = J % Sums<kVectorCount, kTokens>::kChains;
  prefetch_share<kBits, J, kChunk>(words);
  F value[kVectorCount];
  for (int v = 0; v < kVectorCount; ++v) value[v] = table(code_at<kBits, J>(words[v]));
  for (int t = 0; t < kTokens; ++t) {
    const F xk = hn::Set(Floats(), x[t * ldx + J]);
    for (int v = 0; v < kVectorCount; ++v) {
      sums.values[v][t][kChain] = hn::MulAdd(value[v], xk, sums.values[v][t][kChain]);
    }
  }
  if constexpr (J + 1 < kChunk) add_codes<kBits, J + 1>(table, words, x, ldx, sums);
}

/// Two-bit codes two at a time, for one token: four bits choose among the sixteen values that x[k]*w[k] + x[k+1]*w[k+1]
/// can have. They are made in a register (two instructions) and serve all vectors, so that a vector takes a shift, a
/// permute and an addition for two codes instead of two of each: the only way here to gain from having half the bytes.
struct PairLookup {
  // Lanes i: values[i % 4] and values[i / 4], what the first and the second code of pair i stand for.
  explicit HWY_INLINE PairLookup(const float* values) {
    alignas(64) float repeated[2][kBlockRows];
    for (int i = 0; i < kBlockRows; ++i) {
      repeated[0][i] = values[i % 4];
      repeated[1][i] = values[i / 4 % 4];
    }
    first = hn::Load(Floats(), repeated[0]);
    second = hn::Load(Floats(), repeated[1]);
  }
  F first, second;
};

/// Is a vector long enough for the table of pairs?
template <int kBits, int kTokens>
constexpr bool kPairs = kBits == 2 && kTokens == 1 && kLanes == 16 && kPermuteBits >= 4;

template <int kBits, int J, int kVectorCount>
HWY_INLINE void add_codes(const PairLookup& table, const uint32_t* const (&words)[kVectorCount], const float* x,
                          int64_t ldx, Sums<kVectorCount, 1>& sums) {
  const Floats d;
  prefetch_share<kBits, J, kChunk / 2>(words);
  const F first = hn::Mul(hn::Set(d, x[2 * J]), table.first);
  const Lookup<2 * kBits> pairs(hn::MulAdd(hn::Set(d, x[2 * J + 1]), table.second, first));
  for (int v = 0; v < kVectorCount; ++v) {
    F& sum = sums.values[v][0][J % 2];
    sum = hn::Add(sum, pairs(code_at<2 * kBits, J>(words[v])));
  }
  if constexpr (J + 1 < kChunk / 2) add_codes<kBits, J + 1>(table, words, x, ldx, sums);
}

template <int kBits, int kVectorCount, int kTokens>
void decode_vectors(const QuantizedTile& tile, int64_t row, int64_t rows, const float* x, int64_t ldx, float* y) {
  const std::conditional_t<kPairs<kBits, kTokens>, PairLookup, Lookup<kBits>> table(tile.table);
  const uint32_t* words[kVectorCount];
  int64_t scales[kVectorCount];
  F result[kVectorCount][kTokens];
  for (int v = 0; v < kVectorCount; ++v) {
    const int64_t r = existing_row(row + v * kLanes, rows), block = r / kBlockRows, within = r % kBlockRows;
    words[v] = tile.codes + block * tile.chunks * kBits * kBlockRows + within;
    scales[v] = r;
    for (F& token : result[v]) token = hn::Zero(Floats());
  }
  Sums<kVectorCount, kTokens> sums;
  int64_t chunk = 0;
  for (int64_t g = 0; g < tile.groups; ++g) {
    const int64_t end = chunk + tile.group_chunks < tile.chunks ? chunk + tile.group_chunks : tile.chunks;
    while (chunk < end) {
      const int64_t sum_end = chunk + kSumChunks < end ? chunk + kSumChunks : end;
      sums.clear();
      for (; chunk < sum_end; ++chunk) {
        add_codes<kBits, 0>(table, words, x + chunk * kChunk, ldx, sums);
        for (const uint32_t*& word : words) word += kBits * kBlockRows;
      }
      for (int v = 0; v < kVectorCount; ++v) {
        const F scale = load_floats(tile.scales, tile.scale_dtype, scales[v] + g * tile.scale_stride);
        for (int t = 0; t < kTokens; ++t) result[v][t] = hn::MulAdd(sums.total(v, t), scale, result[v][t]);
      }
    }
  }
  for (int v = 0; v < kVectorCount; ++v) {
    for (int t = 0; t < kTokens; ++t) hn::StoreU(result[v][t], Floats(), y + t * kTaskRows + row + v * kLanes);
  }
}

template <int kBits, int kTokens>
void decode_rows(const QuantizedTile& tile, int64_t rows, const float* x, int64_t ldx, float* y) {
  constexpr int kCount = vectors_for(kTokens);
  for (int64_t row = 0; row < rows; row += kCount * kLanes) {
    decode_vectors<kBits, kCount, kTokens>(tile, row, rows, x, ldx, y);
  }
}

template <int kBits>
void decode_bits(const QuantizedTile& tile, int64_t rows, const float* x, int64_t ldx, int tokens, float* y) {
  if constexpr (kBits <= kPermuteBits) {
    switch (tokens) {
      case 1:
        return decode_rows<kBits, 1>(tile, rows, x, ldx, y);
      case 2:
        return decode_rows<kBits, 2>(tile, rows, x, ldx, y);
      case 4:
        return decode_rows<kBits, 4>(tile, rows, x, ldx, y);
      default:
        return decode_rows<kBits, 8>(tile, rows, x, ldx, y);
    }
  }
}

void decode(const QuantizedTile& tile, int64_t blocks, const float* x, int64_t ldx, int tokens, float* y) {
  constexpr decltype(&decode_bits<1>) kByBits[] = {decode_bits<1>, decode_bits<2>, decode_bits<3>, decode_bits<4>,
                                                   decode_bits<5>, decode_bits<6>, decode_bits<7>, decode_bits<8>};
  kByBits[tile.bits - 1](tile, blocks * kBlockRows, x, ldx, tokens, y);
}

template <int kVectorCount, int kTokens>
void decode_dense_vectors(const DenseTile& tile, int64_t row, int64_t rows, const float* x, int64_t ldx, float* y) {
  int64_t first[kVectorCount];
  for (int v = 0; v < kVectorCount; ++v) {
    const int64_t r = existing_row(row + v * kLanes, rows);
    first[v] = r / kBlockRows * tile.k * kBlockRows + r % kBlockRows;
  }
  Sums<kVectorCount, kTokens> sums;
  sums.clear();
  constexpr int kChains = Sums<kVectorCount, kTokens>::kChains;
  for (int64_t k = 0; k < tile.k; k += 2) {  // K is even
    for (int odd = 0; odd < 2; ++odd) {
      F value[kVectorCount];
      for (int v = 0; v < kVectorCount; ++v) {
        value[v] = load_floats(tile.weights, tile.dtype, first[v] + (k + odd) * kBlockRows);
      }
      for (int t = 0; t < kTokens; ++t) {
        const F xk = hn::Set(Floats(), x[t * ldx + k + odd]);
        for (int v = 0; v < kVectorCount; ++v) {
          F& sum = sums.values[v][t][odd % kChains];
          sum = hn::MulAdd(value[v], xk, sum);
        }
      }
    }
  }
  for (int v = 0; v < kVectorCount; ++v) {
    for (int t = 0; t < kTokens; ++t) hn::StoreU(sums.total(v, t), Floats(), y + t * kTaskRows + row + v * kLanes);
  }
}

template <int kTokens>
void decode_dense_rows(const DenseTile& tile, int64_t rows, const float* x, int64_t ldx, float* y) {
  constexpr int kCount = vectors_for(kTokens);
  for (int64_t row = 0; row < rows; row += kCount * kLanes) {
    decode_dense_vectors<kCount, kTokens>(tile, row, rows, x, ldx, y);
  }
}

void decode_dense(const DenseTile& tile, int64_t blocks, const float* x, int64_t ldx, int tokens, float* y) {
  const int64_t rows = blocks * kBlockRows;
  switch (tokens) {
    case 1:
      return decode_dense_rows<1>(tile, rows, x, ldx, y);
    case 2:
      return decode_dense_rows<2>(tile, rows, x, ldx, y);
    case 4:
      return decode_dense_rows<4>(tile, rows, x, ldx, y);
    default:
      return decode_dense_rows<8>(tile, rows, x, ldx, y);
  }
}

void fill_decode_kernels(Kernels& table) {
  table.decode_bits = kPermuteBits;
  table.decode = decode;
  table.decode_dense = decode_dense;
}

}  // namespace HWY_NAMESPACE
}  // namespace flute::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flute::cpu {
FillKernels decode_kernels(int64_t target) { return FLUTE_FOR_TARGET(target, fill_decode_kernels); }
}  // namespace flute::cpu
#endif
