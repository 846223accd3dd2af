// What the plans of all kernels are made of: shape, format and device, of which each is a pure function, and rows dealt
// to blocks. Decode's plan is decode/plan.hpp, prefill's prefill/plan.hpp and prefill_mma/plan.hpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "cuda/layout.hpp"

namespace flute::cuda {

FLUTE_HOST_DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

constexpr int kMaxSegments = 4;
constexpr int kMostSplit = 8;  // blocks of a cluster

struct Shape {
  int m = 0, n = 0, k = 0;
  // Row segments, each with a table of its own: rows [segment_row[s], segment_row[s + 1]), boundaries at multiples of
  // 16. None: one segment of all rows.
  int segments = 0, segment_row[kMaxSegments + 1] = {};

  bool operator==(const Shape&) const = default;
};

struct Format {
  int bits = 4, group_size = 128;  // 2, 3, 4; 32, 64, 128, 256 or -1
  bool bf16 = false;

  bool operator==(const Format&) const = default;
};

struct DeviceLimits {
  int sm_count = 132;
  int shared_per_block = 227 * 1024;
  bool wgmma = true;  // and the copy engine and clusters: the kernels for sm_90a run
  // Clusters of 2, 3 .. blocks, one a multiprocessor, that run at a time: multiprocessors come in groups of 16 or 18.
  std::array<int, kMostSplit - 1> clusters = {66, 39, 30, 22, 17, 15, 15};

  int resident_clusters(int blocks) const { return blocks == 1 ? sm_count : clusters[static_cast<size_t>(blocks - 2)]; }
};

// What an experiment may force: 0 means the plan's choice.
struct PlanWish {
  int rows = 0, warps = 0, blocks = 0, depth = 0, row_warps = 0;  // decode
  int tile = 0, split = 0;  // prefill: 1 + an index of kPrefillTiles; blocks that share out K
  int stripe = 0;           // token tiles side by side
};

// Consecutive row groups dealt to consecutive blocks: the first `longer` blocks have each + 1.
struct RowShare {
  int first = 0, blocks = 0, each = 0, longer = 0;
};

// All rows dealt: a share for each segment, so that no block has rows of two.
struct RowDeal {
  int segments = 1, blocks = 0, longest = 0;  // row groups of a block, at most
  RowShare share[kMaxSegments];
};

// Blocks of at most `most` row groups: of as few as let every block find a multiprocessor at once, or where there are
// too many rows for that, in as few waves as will do.
RowDeal deal_rows(const Shape& shape, int multiprocessors, int most);

// Scale groups of a unit: its kernels are compiled for 1 and 2.
constexpr int groups_of_unit(int group_size) { return group_size == 32 ? 2 : 1; }

// unit >> group_shift_of(...) is a unit's scale group, where it has only one. All of K in one group: 31.
constexpr int group_shift_of(int group_size) {
  int shift = group_size < 0 ? 31 : 0;
  while (group_size >= 0 && kUnitK << shift < group_size) ++shift;
  return shift;
}

// The table in shared memory has an entry every 256 bytes, so that one byte permute makes an address of a byte of codes
// and a lane's copy: 256 entries, or 64 of 6-bit pairs. Copies for all lanes take 128 bytes; the other 128 are free.
constexpr int kTableStride = 256;
// Where it is in shared memory, absolutely: as a constant it costs no instruction in a lookup. What the kernels ask for
// begins at 1024 from compute capability 9.0 on (the system's part comes first), at 0 before; the kernels check it.
constexpr int kTableAddress = 1024;
FLUTE_HOST_DEVICE constexpr int table_bytes(int bits) { return (bits == 3 ? 64 : 256) * kTableStride; }

// `count` things dealt to `parts` as evenly as they go, contiguous, the longer shares first: where share `index`
// begins.
FLUTE_HOST_DEVICE inline int share_begin(int each, int longer, int index) {
  return index * each + (index < longer ? index : longer);
}

}  // namespace flute::cuda
