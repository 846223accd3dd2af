// The plan of one decode launch: a pure function of shape, format and device, printable, no GPU needed.
//
// The work is a rectangle of row groups (16 rows) x units (64 k). A cluster of `split` thread blocks shares a
// contiguous range of row groups; block `rank` of it works on slice `rank` of K. A block walks its rows in passes of up
// to four row groups; in a pass its warps take neighbouring units of K. One stage of the ring is what all warps need
// for one step: codes, scales and, for few tokens, activations.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <utility>

#include "layout.hpp"

namespace flute::cuda {

constexpr int kMaxSegments = 4;
constexpr int kMaxSplit = 8;  // the largest portable cluster
// Row groups of a pass: each load of activations serves so many, and each costs 4 * tiles_m accumulators.
FLUTE_HD constexpr int max_pass_rows(int tiles_m) { return tiles_m == 2 ? 3 : 4; }
constexpr int kMaxPassRows = 4;
constexpr int kMaxStages = 16;
struct DecodeShape {
  int m = 0, n = 0, k = 0;
  int bits = 4, group = 128;  // group: 32, 64, 128, 256 or -1
};

struct DeviceLimits {
  int sm_count = 132;
  int shared_per_block = 227 * 1024;
  int shared_per_sm = 228 * 1024;
  int reserved_per_block = 1024;
  int clusters[4] = {132, 66, 30, 14};  // resident at once, of 1, 2, 4, 8 blocks with a multiprocessor each
};

// What a caller may force, for experiments: 0 means "the plan's choice".
struct DecodeWish {
  int split = 0, stages = 0, clusters = 0, tiles_m = 0, pass_rows = 0, warps = 0;
};

struct DecodePlan {
  int tiles_m = 1;  // 8-token tiles of the tensor-core instruction: 1, 2, 4, 8
  int warps = 16;
  int row_groups = 0, units = 0;
  int split = 1, clusters = 1, pass_rows = 1, stages = 0;
  bool wide = false;  // decode_wide.cuh
  int row_warpgroups = 1, depth = 2, step_units = 0, scale_box = 0;
  int early_stages = 2;  // fetched before the dependency wait
  // Shared memory: offsets from the start of the block's dynamic part, and inside a stage (codes first).
  int sums_at = 0, sums_low = 0, sums_high_at = 0, exchange_at = 0, zeros_at = 0, table_at = 0, ring_at = 0,
      shared_bytes = 0;
  int scales_in_stage = 0, x_in_stage = 0, stage_bytes = 0, scale_pitch = 0, x_bytes = 0;
  // What the kernel would otherwise divide for: shares as (each, longer) pairs, powers of two as shifts.
  int slice_each = 0, slice_longer = 0, rows_each = 0, rows_longer = 0;
  int split_shift = 0, group_shift = 0, align_shift = 0;
  bool valid = false;
};

// The table in shared memory. 2 and 3 bits, where integer instructions are short: an entry every 256 bytes, so that one
// byte permute makes an address of a byte of codes and a lane's (table base | copy); hence it lies at a multiple of 64
// KB, or for 6-bit pairs, whose bytes have two bits to spare for the base, at 16 KB. 4 bits, where shared memory for
// stages is short: every 128 bytes, at a multiple of 32 KB, and an address costs 1.75 instructions.
FLUTE_HD constexpr int table_stride(int bits) { return bits == 4 ? 128 : 256; }
FLUTE_HD constexpr int table_bytes(int bits) { return (bits == 3 ? 64 : 256) * table_stride(bits); }
FLUTE_HD constexpr int table_address(int bits) { return bits == 4 ? 0x8000 : bits == 3 ? 0x4000 : 0x10000; }
constexpr int kBarrierBytes = 512;
static_assert(2 * kMaxStages * 8 + 4 * 8 <= kBarrierBytes);

// `count` things dealt to `parts` as evenly as they go, contiguous, the longer shares first: where share `index`
// begins.
FLUTE_HD inline int share_begin(int each, int longer, int index) {
  return index * each + (index < longer ? index : longer);
}

// Row groups of the next pass, with `left` to go: as even as passes of at most `most` can be.
FLUTE_HD inline int pass_size(int left, int most) {
  const int passes = (left + most - 1) / most;
  return (left + passes - 1) / passes;
}

// The dynamic shared memory of a block begins here; the kernel checks it.
constexpr int kSharedStart = 1024;

// Places everything: small things before the table, the ring behind it or, if more of it fits there, before it.
inline void place_shared(DecodePlan& plan, const DecodeShape& shape, int wish_stages, int budget) {
  const int step_k = plan.warps * kUnitK;
  plan.scale_pitch = (shape.group < 0 ? 1 : std::max(1, step_k / shape.group)) * kScaleBytes;
  plan.scales_in_stage = plan.pass_rows * plan.warps * unit_bytes(shape.bits);
  // Activations: [unit][token][64 k], 128 bytes each, swizzled by the copy engine over 1024 bytes.
  const auto to_1024 = [](int at) { return (at + 1023) / 1024 * 1024; };
  plan.x_in_stage = to_1024(plan.scales_in_stage + plan.pass_rows * plan.scale_pitch);
  plan.x_bytes = shape.m * step_k * 2;
  plan.stage_bytes = to_1024(plan.x_in_stage + plan.x_bytes);
  const int piece = plan.pass_rows * plan.tiles_m * 512;
  const int exchange = plan.split > 1 ? 2 * piece : 0;
  plan.table_at = table_address(shape.bits) - kSharedStart;
  int low = kBarrierBytes, high = plan.table_at + table_bytes(shape.bits);
  for (const auto& [bytes, at] : {std::pair{exchange, &plan.exchange_at}, std::pair{128, &plan.zeros_at}}) {
    int& end = low + bytes <= plan.table_at ? low : high;
    *at = end;
    end += bytes;
  }
  // The sums of the first warps go before the table, as many as fit, the others behind it.
  plan.sums_at = low, plan.sums_low = std::min(plan.warps, (plan.table_at - low) / piece), plan.sums_high_at = high;
  low += plan.sums_low * piece, high += (plan.warps - plan.sums_low) * piece;
  low = to_1024(low), high = to_1024(high);
  const int stages_low = (plan.table_at - low) / plan.stage_bytes, stages_high = (budget - high) / plan.stage_bytes;
  const bool behind = stages_high >= std::min(stages_low, wish_stages);
  plan.ring_at = behind ? high : low;
  plan.stages = std::min({behind ? stages_high : stages_low, wish_stages, kMaxStages});
  plan.shared_bytes = behind ? high + plan.stages * plan.stage_bytes : high;
}

inline void place_wide(DecodePlan& plan, const DecodeShape& shape, const DecodeWish& wish, const DeviceLimits& device) {
  const int k_warpgroups = 4 / plan.row_warpgroups, most = 4 * plan.row_warpgroups;
  plan.step_units = k_warpgroups * plan.depth;
  const int step_k = plan.step_units * kUnitK, codes = plan.pass_rows * plan.step_units * unit_bytes(shape.bits);
  const auto to_1024 = [](int at) { return (at + 1023) / 1024 * 1024; };
  plan.scale_pitch = (shape.group < 0 ? 1 : std::max(1, step_k / shape.group)) * kScaleBytes;
  plan.scale_box = most * plan.scale_pitch;
  plan.scales_in_stage = codes;
  plan.x_in_stage = to_1024(codes + plan.scale_box);
  plan.x_bytes = plan.step_units * plan.tiles_m * 1024;
  plan.stage_bytes = plan.x_in_stage + plan.x_bytes;
  plan.table_at = table_address(shape.bits) - kSharedStart;
  const int sums = k_warpgroups > 1 ? plan.row_warpgroups * plan.tiles_m * 2048 : 0;
  const int room = sums + (plan.split > 1 ? plan.pass_rows * plan.tiles_m * 512 : 0);
  const bool low = kBarrierBytes + room <= plan.table_at;
  plan.sums_at = low ? kBarrierBytes : plan.table_at + table_bytes(shape.bits);
  plan.exchange_at = plan.sums_at + sums;
  plan.ring_at = to_1024(plan.table_at + table_bytes(shape.bits) + (low ? 0 : room));
  const int wanted = wish.stages != 0 ? wish.stages : std::max(3, 65536 / codes);
  plan.stages = std::min({wanted, kMaxStages, (device.shared_per_block - plan.ring_at) / plan.stage_bytes});
  plan.shared_bytes = plan.ring_at + plan.stages * plan.stage_bytes;
}

// The wide kernel: four warpgroups of 4 row groups each, across rows as far as a block has rows, the rest along K.
inline DecodePlan make_wide_plan(const DecodeShape& shape, const DeviceLimits& device, const DecodeWish& wish) {
  DecodePlan plan;
  plan.wide = true;
  plan.tiles_m = shape.m <= 32 ? 4 : 8;
  plan.row_groups = (shape.n + kGroupRows - 1) / kGroupRows, plan.units = (shape.k + kUnitK - 1) / kUnitK;
  // Fewer than three row groups for each multiprocessor would leave half of a warpgroup idle: pairs of blocks share K.
  const bool few = plan.row_groups <= 2 * device.sm_count && plan.units >= 16;
  plan.split_shift = wish.split != 0 ? wish.split / 2 : few ? 1 : 0;
  if (plan.split_shift > 1) return plan;
  plan.split = 1 << plan.split_shift;
  plan.clusters = std::min(plan.row_groups, wish.clusters != 0 ? wish.clusters : device.clusters[plan.split_shift]);
  plan.rows_each = plan.row_groups / plan.clusters, plan.rows_longer = plan.row_groups % plan.clusters;
  const int longest = plan.rows_each + (plan.rows_longer != 0);
  plan.row_warpgroups = longest <= 4 ? 1 : longest <= 8 ? 2 : 4;
  const int most = 4 * plan.row_warpgroups;
  plan.pass_rows = pass_size(longest, wish.pass_rows != 0 ? std::min(wish.pass_rows, most) : most);
  // Two units for each warpgroup in a stage, if three such stages fit: with two stages it was slower than with one
  // unit.
  plan.depth = 2;
  place_wide(plan, shape, wish, device);
  if (plan.stages < 3) plan.depth = 1, place_wide(plan, shape, wish, device);
  const int steps = (plan.units + plan.step_units - 1) / plan.step_units;
  plan.slice_each = (steps + plan.split - 1) / plan.split * plan.step_units;
  if (plan.slice_each * (plan.split - 1) >= plan.units) return plan;  // the last block would have nothing
  while (shape.group > 0 && 1 << plan.group_shift < shape.group) ++plan.group_shift;
  plan.valid = plan.stages >= 2;
  return plan;
}

inline DecodePlan make_decode_plan(const DecodeShape& shape, const DeviceLimits& device, const DecodeWish& wish = {}) {
  if (shape.m > 16) return make_wide_plan(shape, device, wish);
  DecodePlan best;
  double best_cost = 1e30;
  const int row_groups = (shape.n + kGroupRows - 1) / kGroupRows;
  const int units = (shape.k + kUnitK - 1) / kUnitK;
  const int align = shape.group > kUnitK ? shape.group / kUnitK : 1;
  const int tiles_m = wish.tiles_m != 0 ? wish.tiles_m : shape.m <= 8 ? 1 : 2;
  // 8 warps leave room for a second thread block, the next kernel's: its set-up and first weights overlap with this
  // one's end. That won where a block has two row groups of short K to read (4096 x 4096), and lost everywhere else.
  const bool small = shape.m <= 4 && shape.bits > 2 && units <= 64 && row_groups > device.sm_count &&
                     row_groups <= 2 * device.sm_count;
  int warps = tiles_m == 1 && small && shape.group != 32 ? 8 : 16;
  if (wish.warps != 0 && tiles_m == 1) warps = wish.warps;
  const bool pairs = warps == 8 && tiles_m == 1;
  const int budget = pairs ? device.shared_per_sm / 2 - device.reserved_per_block : device.shared_per_block;
  for (int shift = 0; shift < 4; ++shift) {
    const int split = 1 << shift;
    if (wish.split != 0 && split != wish.split) continue;
    const int slices = (units + align - 1) / align;
    if (split > slices) break;
    DecodePlan plan;
    plan.tiles_m = tiles_m, plan.warps = warps, plan.row_groups = row_groups, plan.units = units, plan.split = split;
    plan.clusters = std::min(row_groups, wish.clusters != 0 ? wish.clusters : device.clusters[shift]);
    const int longest = (row_groups + plan.clusters - 1) / plan.clusters;
    const int most = max_pass_rows(tiles_m);
    plan.pass_rows = pass_size(longest, wish.pass_rows != 0 ? std::min(wish.pass_rows, most) : most);
    // In flight: 64 KB of codes per multiprocessor; more gained nothing, 200 KB lost (docs/kernel-notes.md).
    const int stage = plan.pass_rows * warps * unit_bytes(shape.bits);
    place_shared(plan, shape, wish.stages != 0 ? wish.stages : std::max(3, 65536 / stage), budget);
    if (plan.stages < 2) continue;
    plan.early_stages = pairs ? plan.stages : 2;
    plan.slice_each = slices / split, plan.slice_longer = slices % split;
    plan.rows_each = row_groups / plan.clusters, plan.rows_longer = row_groups % plan.clusters;
    plan.split_shift = shift;
    while (1 << plan.align_shift < align) ++plan.align_shift;
    while (shape.group > 0 && 1 << plan.group_shift < shape.group) ++plan.group_shift;
    plan.valid = true;
    // Cost: bytes that the busiest block pulls, activations (from L2) at a lower price, plus what an exchange is worth.
    const double k_here = static_cast<double>((slices + split - 1) / split) * align * kUnitK;
    const double passes = (longest + plan.pass_rows - 1) / plan.pass_rows;
    const double codes = longest * k_here * kGroupRows * shape.bits / 8;
    const double tokens = passes * shape.m * k_here * 2;
    const double cost = codes + 0.3 * tokens + 1500 * passes + (split > 1 ? 30000 + 6000 * passes : 0);
    if (cost < best_cost) best_cost = cost, best = plan;
  }
  return best;
}

inline void print_plan(const DecodePlan& p, char* text, size_t size) {
  std::snprintf(text, size, "m%d%s warps %d split %d clusters %d rows %d pass %d stages %d x %d shared %d",
                8 * p.tiles_m, p.wide ? " wide" : "", p.warps, p.split, p.clusters, p.rows_each, p.pass_rows, p.stages,
                p.stage_bytes, p.shared_bytes);
}

}  // namespace flute::cuda
