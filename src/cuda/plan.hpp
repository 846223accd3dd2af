// The plan of one multiply: a pure function of shape, format and device, printable, no GPU needed.
//
// The work is a rectangle of row groups (16 rows) x units of k (layout.hpp). A thread block takes a contiguous range of
// row groups, in passes of up to `rows` of them; in a pass its warps take the units of K in turn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/layout.hpp"

namespace flute::cuda {

constexpr int kMaxSegments = 4;
constexpr int kMaxDecodeTokens = 64;

struct Shape {
  int m = 0, n = 0, k = 0;
};

struct Format {
  int bits = 4, group_size = 128;  // 2, 3, 4; 32, 64, 128, 256 or -1
  bool bf16 = false;
};

struct DeviceLimits {
  int sm_count = 132;
  int shared_per_block = 227 * 1024;
};

// What an experiment may force: 0 means the plan's choice.
struct PlanWish {
  int rows = 0, warps = 0, blocks = 0, depth = 0;
};

struct DecodePlan {
  int tiles_m = 1;  // 8-token tiles of the tensor-core instruction: 1, 2, 4, 8
  int rows = 4;     // row groups of a pass
  int depth = 1;    // consecutive units of a step
  int warps = 16;
  int blocks = 0;
  int row_groups = 0, units = 0, groups = 0;
  int rows_each = 0, rows_longer = 0;  // of a block: the first `rows_longer` blocks have one more
  int group_shift = 31;                // unit >> group_shift is its scale group, where a unit has only one
  int table_rounds = 0;                // of building the table, a warp doing four entries in each
  // Shared memory; the table is at 0. A warp has two stages of a step each: codes, scales, activations.
  int sums_at = 0, sum_pitch = 0, ring_at = 0, stage_bytes = 0, x_in_stage = 0, shared_bytes = 0;
  bool valid = false;
};

DecodePlan make_decode_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                            const PlanWish& wish = {});

std::string to_string(const DecodePlan& plan);

// Scale groups of a unit: its kernels are compiled for 1 and 2.
constexpr int groups_of_unit(int group_size) { return group_size == 32 ? 2 : 1; }

// The table in shared memory has an entry every 256 bytes, so that one byte permute makes an address of a byte of codes
// and a lane's copy: 256 entries, or 64 of 6-bit pairs. Copies for all lanes take 128 bytes; the other 128 are free.
constexpr int kTableStride = 256;
FLUTE_HOST_DEVICE constexpr int table_bytes(int bits) { return (bits == 3 ? 64 : 256) * kTableStride; }

FLUTE_HOST_DEVICE constexpr int max_warps(int tiles_m) { return tiles_m <= 2 ? 16 : tiles_m == 4 ? 12 : 8; }
// Row groups of a pass: each load of activations serves so many. Accumulators and shared memory for two stages set the
// limit.
FLUTE_HOST_DEVICE constexpr int max_rows(int tiles_m) { return tiles_m == 1 ? 7 : tiles_m == 2 ? 5 : 4; }
// Two units a step halve the instructions that a step costs, which gains at 2 bits, where they bind, and loses (a
// longer way to the first result) elsewhere.
constexpr int max_depth(int bits, int tiles_m, int rows) { return bits == 2 && tiles_m == 1 && rows <= 4 ? 2 : 1; }

// Sums of four accumulator tiles (16 rows x 8 tokens) of every warp meet in shared memory at a time: lines of 128
// bytes, four a tile, `sum_pitch` bytes from one to the next; in the table's gaps where they fit.
constexpr int kSumTiles = 4;

// `count` things dealt to `parts` as evenly as they go, contiguous, the longer shares first: where share `index`
// begins.
FLUTE_HOST_DEVICE inline int share_begin(int each, int longer, int index) {
  return index * each + (index < longer ? index : longer);
}

}  // namespace flute::cuda
