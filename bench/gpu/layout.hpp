// The tiled layout of the decode kernels: where a code of W[N, K] lies in device memory.
//
// A *row group* is 16 rows over all of K; a *unit* is 16 rows x 64 k of it, 128 * bits bytes. Units of a row group are
// contiguous along k and row groups follow each other, so any (rows, k range) is one long contiguous piece per row
// group and no plan needs another layout. Inside a unit lane (g = lane / 4, t = lane % 4) owns 32 codes, `bits` words:
// the codes of rows g and g + 8 that are four A fragments of mma.m16n8k16, k in its natural order, so that ldmatrix
// (and wgmma) can take activations as they lie in memory. A lane's words: 4 bits: 16 bytes at lane * 16. 2 bits: 8
// bytes at lane * 8. 3 bits: 8 bytes at lane * 8, then 4 at 256 + lane * 4. Scales: per row group and scale group 16
// values, as pairs (row g, row g + 8).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FLUTE_HD __host__ __device__
#else
#define FLUTE_HD
#endif

namespace flute::cuda {

constexpr int kGroupRows = 16;
constexpr int kUnitK = 64;
FLUTE_HD constexpr int unit_bytes(int bits) { return 128 * bits; }
constexpr int kScaleBytes = kGroupRows * 2;  // one scale group of one row group

// Word `word` (0..bits-1) of a lane in a unit. `code(row, k)` gives the code at a place of the unit (row 0..15, k
// 0..63).
template <typename Code>
FLUTE_HD uint32_t tiled_word(int bits, int lane, int word, const Code& code) {
  const int g = lane / 4, t = lane % 4;
  // Fragment 0..3 (half = fragment / 2), register a0..a3, which of its two columns.
  const auto at = [&](int fragment, int reg, int which) -> uint32_t {
    const int row = g + 8 * (reg & 1);
    const int k = 16 * fragment + 2 * t + 8 * (reg >> 1) + which;
    return code(row, k);
  };
  if (bits == 4) {
    // One fragment: four bytes, each a pair. Rotated left by 7, so that byte 0 is a table address (128 bytes an entry)
    // as it is.
    uint32_t value = 0;
    for (int reg = 0; reg < 4; ++reg) value |= (at(word, reg, 0) | at(word, reg, 1) << 4) << (8 * reg);
    return value << 7 | value >> 25;
  }
  if (bits == 3) {
    // Three words hold 16 pairs of 6 bits: pair 4 j + i in the low bits of byte i of word j; the two bits above it, of
    // all three words, are pair 12 + i.
    const auto pair = [&](int number) -> uint32_t {
      return at(number / 4, number % 4, 0) | at(number / 4, number % 4, 1) << 3;
    };
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i) value |= (pair(4 * word + i) | (pair(12 + i) >> (2 * word) & 3) << 6) << (8 * i);
    return value;
  }
  // 2 bits: a half word for each fragment: nibble j = code j of row g, code j of row g + 8 above it. A byte is
  // therefore registers a0 and a1 (or a2 and a3): one lookup of 8 bytes. With the other two bits masked away, four
  // nibbles are a byte-permute selector. Which half words take which way is the kernel's choice, not the layout's.
  uint32_t value = 0;
  for (int half_word = 0; half_word < 2; ++half_word) {
    for (int j = 0; j < 4; ++j) {
      const int reg = 2 * (j / 2);
      value |= at(2 * word + half_word, reg, j % 2) << (16 * half_word + 4 * j);
      value |= at(2 * word + half_word, reg + 1, j % 2) << (16 * half_word + 4 * j + 2);
    }
  }
  return value;
}

// Where word `word` of a lane stands in its unit, in words.
FLUTE_HD inline int word_position(int bits, int lane, int word) {
  if (bits == 3) return word < 2 ? lane * 2 + word : 64 + lane;
  return lane * bits + word;
}

// Where the scale of a row (0..15 of its group) stands among the 16.
FLUTE_HD inline int scale_position(int row) { return row % 8 * 2 + row / 8; }

}  // namespace flute::cuda
