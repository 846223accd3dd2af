// The tiled layout: where a code of W[N, K] lies in device memory. One layout serves every CUDA kernel.
//
// A *row group* is 16 rows over all of K. A *unit* is 16 rows x unit_k(bits) k of it: what one warp loads with 16 bytes
// a lane (3 bits: 24). Units of a row group are contiguous along k and row groups follow each other, so any rows and
// any k range are one contiguous piece per row group, and no plan, multiprocessor count or split needs another layout.
//
// Inside a unit lane (g = lane / 4, t = lane % 4) owns the codes of rows g and g + 8 that are A fragments of
// mma.m16n8k16 (and of wgmma), k in its natural order, so that ldmatrix and the copy engine can take activations as
// they lie in memory. Four fragments, 64 k, are `bits` words of the lane, a *set*; units of 3 and 2 bits have two sets.
//   4 bits: 1 set,  16 bytes at lane * 16
//   3 bits: 2 sets, 16 bytes at lane * 16 and 8 bytes at 512 + lane * 8
//   2 bits: 2 sets, 16 bytes at lane * 16
// Scales: per row group and scale group 16 values, as pairs (row g, row g + 8).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FLUTE_HOST_DEVICE __host__ __device__
#else
#define FLUTE_HOST_DEVICE
#endif

namespace flute::cuda {

constexpr int kGroupRows = 16;
constexpr int kSetK = 64;
FLUTE_HOST_DEVICE constexpr int unit_sets(int bits) { return bits == 4 ? 1 : 2; }
FLUTE_HOST_DEVICE constexpr int unit_k(int bits) { return kSetK * unit_sets(bits); }
FLUTE_HOST_DEVICE constexpr int unit_words(int bits) { return bits * unit_sets(bits); }  // of one lane
FLUTE_HOST_DEVICE constexpr int unit_bytes(int bits) { return 32 * 4 * unit_words(bits); }
constexpr int kScaleBytes = kGroupRows * 2;  // one scale group of one row group

// Word `word` (0 .. unit_words(bits) - 1) of a lane in a unit. `code(row, k)` gives the code at a place of the unit
// (row 0..15, k 0 .. unit_k(bits) - 1).
template <typename Code>
FLUTE_HOST_DEVICE uint32_t tiled_word(int bits, int lane, int word, const Code& code) {
  const int g = lane / 4, t = lane % 4;
  const int set = word / bits, in_set = word % bits;
  // Fragment 0..3 of the set, its register a0..a3, which of the register's two columns.
  const auto at = [&](int fragment, int reg, int which) -> uint32_t {
    return code(g + 8 * (reg & 1), kSetK * set + 16 * fragment + 2 * t + 8 * (reg >> 1) + which);
  };
  uint32_t value = 0;
  if (bits == 4) {
    // One fragment: byte i is register i, a pair.
    for (int reg = 0; reg < 4; ++reg) value |= (at(in_set, reg, 0) | at(in_set, reg, 1) << 4) << (8 * reg);
  } else if (bits == 3) {
    // Three words hold 16 pairs of 6 bits: pair 4 j + i in the low bits of byte i of word j; the two bits above it, of
    // all three words, are pair 12 + i.
    const auto pair = [&](int number) -> uint32_t {
      return at(number / 4, number % 4, 0) | at(number / 4, number % 4, 1) << 3;
    };
    for (int i = 0; i < 4; ++i) value |= (pair(4 * in_set + i) | (pair(12 + i) >> (2 * in_set) & 3) << 6) << (8 * i);
  } else {
    // 2 bits: half a word for each fragment: nibble j = code j of row g, code j of row g + 8 above it. A byte is
    // therefore registers a0 and a1 (or a2 and a3): one lookup of 8 bytes. With the other two bits masked away, four
    // nibbles are a byte-permute selector. Which halves take which way is the kernel's choice, not the layout's.
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 4; ++j) {
        const int reg = 2 * (j / 2);
        value |= at(2 * in_set + half, reg, j % 2) << (16 * half + 4 * j);
        value |= at(2 * in_set + half, reg + 1, j % 2) << (16 * half + 4 * j + 2);
      }
    }
  }
  return value;
}

// Where word `word` of a lane stands in its unit, in words.
FLUTE_HOST_DEVICE constexpr int word_position(int bits, int lane, int word) {
  return word < 4 ? lane * 4 + word : 128 + lane * (unit_words(bits) - 4) + (word - 4);
}

// Where the scale of a row (0..15 of its group) stands among the 16.
FLUTE_HOST_DEVICE constexpr int scale_position(int row) { return row % 8 * 2 + row / 8; }

}  // namespace flute::cuda
