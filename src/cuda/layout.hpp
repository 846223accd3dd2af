// The tiled layout: where a code of W[N, K] lies in device memory. One layout serves every CUDA kernel.
//
// A *row group* is 16 rows; a *unit* is a row group x 64 k, 128 * bits bytes. Units of the same k follow each other
// along the rows, then comes the next k: what a kernel reads of any rows for one k is contiguous, one address and a few
// wide copies, and no plan, multiprocessor count or split needs another layout. Inside a unit lane (g = lane / 4, t =
// lane % 4) owns 32 codes, `bits` words: the codes of rows g and g + 8 that are four A fragments of mma.m16n8k16 (and
// of wgmma), k in its natural order, so that ldmatrix and the copy engine can take activations as they lie in memory. A
// lane's words: 4 bits: 16 bytes at lane * 16. 2 bits: 8 bytes at lane * 8. 3 bits: 8 bytes at lane * 8, then 4 at 256
// + lane * 4. Scales: for each scale group all row groups, 16 values of each, as pairs (row g, row g + 8).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FLUTE_HOST_DEVICE __host__ __device__
#else
#define FLUTE_HOST_DEVICE
#endif

namespace flute::cuda {

constexpr int kGroupRows = 16;
constexpr int kUnitK = 64;
FLUTE_HOST_DEVICE constexpr int unit_bytes(int bits) { return 128 * bits; }
constexpr int kScaleBytes = kGroupRows * 2;  // one scale group of one row group
// Kernels fetch as many row groups as they have room for, also where the matrix has no more: so many bytes behind codes
// and scales must be readable.
constexpr int kReadBeyond = 8 * unit_bytes(4);

// Word `word` (0 .. bits - 1) of a lane in a unit. `code(row, k)` gives the code at a place of the unit (row 0..15, k
// 0..63).
template <typename Code>
FLUTE_HOST_DEVICE uint32_t tiled_word(int bits, int lane, int word, const Code& code) {
  const int g = lane / 4, t = lane % 4;
  // Fragment 0..3, its register a0..a3, which of the register's two columns.
  const auto at = [&](int fragment, int reg, int which) -> uint32_t {
    return code(g + 8 * (reg & 1), 16 * fragment + 2 * t + 8 * (reg >> 1) + which);
  };
  uint32_t value = 0;
  if (bits == 4) {
    // One fragment: byte i is register i, a pair.
    for (int reg = 0; reg < 4; ++reg) value |= (at(word, reg, 0) | at(word, reg, 1) << 4) << (8 * reg);
  } else if (bits == 3) {
    // Three words hold 16 pairs of 6 bits: pair 4 j + i in the low bits of byte i of word j; the two bits above it, of
    // all three words, are pair 12 + i.
    const auto pair = [&](int number) -> uint32_t {
      return at(number / 4, number % 4, 0) | at(number / 4, number % 4, 1) << 3;
    };
    for (int i = 0; i < 4; ++i) value |= (pair(4 * word + i) | (pair(12 + i) >> (2 * word) & 3) << 6) << (8 * i);
  } else {
    // 2 bits: half a word for each fragment: nibble j = code j of row g, code j of row g + 8 above it. A byte is
    // therefore registers a0 and a1 (or a2 and a3): one lookup of 8 bytes. With the other two bits masked away, four
    // nibbles are a byte-permute selector. Which halves take which way is the kernel's choice, not the layout's.
    for (int half = 0; half < 2; ++half) {
      for (int j = 0; j < 4; ++j) {
        const int reg = 2 * (j / 2);
        value |= at(2 * word + half, reg, j % 2) << (16 * half + 4 * j);
        value |= at(2 * word + half, reg + 1, j % 2) << (16 * half + 4 * j + 2);
      }
    }
  }
  return value;
}

// The inverse: the code at (row, k) of a unit. `word_of(lane, word)` gives the lane's words.
template <typename Word>
FLUTE_HOST_DEVICE constexpr uint32_t tiled_code(int bits, int row, int k, const Word& word_of) {
  const int lane = row % 8 * 4 + k % 8 / 2, reg = row / 8 + k / 8 % 2 * 2, which = k % 2;
  const int fragment = k / 16;
  if (bits == 4) return word_of(lane, fragment) >> (8 * reg + 4 * which) & 15;
  if (bits == 3) {
    uint32_t pair = 0;
    if (fragment < 3) {
      pair = word_of(lane, fragment) >> (8 * reg);
    } else {
      for (int j = 0; j < 3; ++j) pair |= (word_of(lane, j) >> (8 * reg + 6) & 3) << (2 * j);
    }
    return pair >> (3 * which) & 7;
  }
  const int nibble = reg / 2 * 2 + which;
  return word_of(lane, fragment / 2) >> (fragment % 2 * 16 + 4 * nibble + reg % 2 * 2) & 3;
}

// Where word `word` of a lane stands in its unit, in words.
FLUTE_HOST_DEVICE constexpr int word_position(int bits, int lane, int word) {
  if (bits == 3) return word < 2 ? lane * 2 + word : 64 + lane;
  return lane * bits + word;
}

// Where the scale of a row (0..15 of its group) stands among the 16.
FLUTE_HOST_DEVICE constexpr int scale_position(int row) { return row % 8 * 2 + row / 8; }

// Units along k, and scale groups of a row group: both cover K rounded up to whole units. Codes and scales in the
// padding are 0 (a row beyond N too), activations there count as 0.
FLUTE_HOST_DEVICE constexpr int units_along_k(int k) { return (k + kUnitK - 1) / kUnitK; }
FLUTE_HOST_DEVICE constexpr int tiled_groups(int group_size, int k) {
  return group_size < 0 ? 1 : (units_along_k(k) * kUnitK + group_size - 1) / group_size;
}

}  // namespace flute::cuda
