// Y[M, N] = X[M, K] * W[N, K]^T for many tokens on Hopper, W in 2-, 3- or 4-bit codes of any table: bound by the tensor
// cores.
//
// Weights are operand A of wgmma, out of registers; tokens are operand B, out of shared memory. Three warps fetch:
// a stage is a unit of k (64) of a tile's activations (a tensor copy, swizzled as wgmma reads it) and of its codes and
// scales (contiguous in the layout: two bulk copies). Two to four warpgroups multiply. A warp reads the codes of its 16
// rows, looks them up as in decode (lookup.cuh), multiplies them with their scales, and hands four fragments to four
// wgmmas. While the tensor cores work on these, other warpgroups decode, and where registers allow the warp itself
// decodes the next four.
#pragma once

#include "cuda/decode/lookup.cuh"
#include "cuda/prefill/arguments.hpp"
#include "cuda/ptx/hopper.cuh"

namespace flute::cuda {

// A stage of the ring and the parity of its barriers in this round.
struct Place {
  int stage = 0;
  uint32_t parity = 0;

  // In four instructions: the compiler makes seven of it.
  __device__ void advance(int by, int stages) {
    asm("{\n"
        ".reg .pred wraps;\n"
        "add.s32 %0, %0, %2;\n"
        "setp.ge.s32 wraps, %0, %3;\n"
        "@wraps sub.s32 %0, %0, %3;\n"
        "@wraps xor.b32 %1, %1, 1;\n"
        "}"
        : "+r"(stage), "+r"(parity)
        : "r"(by), "r"(stages));
  }
};

template <typename T, int kBits, int kTile, int kGroups>
__global__ void __launch_bounds__(kPrefillTiles[kTile].threads(), 1)
    prefill_kernel(const __grid_constant__ PrefillArguments args, const __grid_constant__ TensorMap x_map) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  constexpr PrefillTile kShape = kPrefillTiles[kTile];
  constexpr int kTokens = kShape.tokens, kTiles = kTokens / 8, kPairs = kShape.pairs();
  constexpr int kRowWarps = 4 * kShape.row_warpgroups, kWarps = 4 * kShape.warpgroups(), kDepth = kShape.depth;
  constexpr int kUnitBytes = unit_bytes(kBits), kRowGroups = kShape.row_groups();
  constexpr int kCodesAt = codes_in_stage(kTokens), kScalesAt = scales_in_stage(kBits, kShape);
  constexpr int kStageBytes = prefill_stage_bytes(kBits, kShape, kGroups);
  constexpr int kBuffers = kShape.fragment_buffers();
  constexpr int kMultiplying = 1, kSumsRead = 2, kWarpgroupStores = 3;  // named barriers, the last of each warpgroup
  const PrefillPlan& plan = args.plan;
  extern __shared__ __align__(1024) uint8_t shared_memory[];
  // In a cluster, addresses of a block's own shared memory carry its rank in their high bits.
  const uint32_t shared_begin = ptx::shared_address(shared_memory), own = shared_begin & ~0xffffffu;
  if (shared_begin - own > kTableAddress) __trap();
  if (threadIdx.x == 32 * kWarps) ptx::prefetch_tensor_map(&x_map);
  if (args.dependent_launch) ptx::let_next_kernel_start();
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const uint32_t lane = threadIdx.x % 32;
  const int stages = ptx::opaque(plan.stages);
  const uint32_t full = own + kTableAddress + kBarrierGap * kTableStride + kTableStride / 2, empty = full + 8;
  const auto sums_of_warp = [&](int i) { return full + i * kTableStride + 16; };
  const uint32_t ring = own + kTableAddress + prefill_table_bytes(kBits);

  // ---- Tiles by turns: first those that a block has for itself, then those whose units of K a cluster shares out.
  const int split = plan.split, rank = static_cast<int>(ptx::cluster_rank());
  const int tiles = plan.deal.blocks * plan.token_tiles, whole = plan.whole_tiles;
  const int cluster = static_cast<int>(ptx::cluster_index());
  const int first_tile = whole > 0 ? static_cast<int>(blockIdx.x) : cluster;
  const auto next_tile = [&](int index) {
    if (index >= whole) return index + plan.clusters;
    index += static_cast<int>(gridDim.x);
    return index < whole ? index : whole + cluster;
  };
  struct Units {
    int begin, end;
  };
  const auto units_of = [&](int index) {
    if (index < whole) return Units{0, plan.units};
    const int begin = share_begin(plan.units_each, plan.units_longer, rank);
    return Units{begin, begin + plan.units_each + (rank < plan.units_longer)};
  };
  struct Tile {
    int segment, row, rows, token;  // row groups
  };
  const auto tile_at = [&](int index) {
    int row_tile = index, token = 0, segment = 0;
    if (plan.token_tiles > 1) {
      const int stripe = index / plan.stripe_tiles, first = stripe * plan.stripe;
      const int width = min(plan.stripe, plan.token_tiles - first), left = index - stripe * plan.stripe_tiles;
      row_tile = left / width, token = (first + left - row_tile * width) * kTokens;
    }
    if (plan.deal.segments > 1) {
#pragma unroll 1
      while (segment + 1 < plan.deal.segments && row_tile >= plan.deal.share[segment].blocks) {
        row_tile -= plan.deal.share[segment++].blocks;
      }
    }
    const RowShare& share = plan.deal.share[segment];
    return Tile{segment, share.first + share_begin(share.each, share.longer, row_tile),
                share.each + (row_tile < share.longer), token};
  };

  // The first table's values, asked for before all else: they come from memory.
  const auto codebook_value = [&](int segment) {
    return ptx::load_global_2(static_cast<const uint16_t*>(args.codebooks) + (segment << kBits) + lane % (1 << kBits));
  };
  Tile tile = tile_at(first_tile);
  Units units = units_of(first_tile);
  const auto advance = [&](int& index) {
    index = next_tile(index);
    tile = tile_at(index), units = units_of(index);
  };
  uint32_t value = codebook_value(tile.segment);
  __syncwarp();  // keeps the load here
  for (int i = warp; i < max(stages, kWarps); i += kWarps + 4) {
    if (lane == 0 && i < stages) {
      ptx::mbarrier_init(full + i * kTableStride, kFetchingWarps);
      ptx::mbarrier_init(empty + i * kTableStride, kRowWarps);
    }
    if (lane == 0 && split > 1 && i < kWarps) ptx::mbarrier_init(sums_of_warp(i), 1);
  }
  if (lane == 0) ptx::fence_mbarrier_init();
  __syncthreads();

  if (warp >= kWarps) {
    ptx::give_registers<kShape.other_registers()>();  // to those who multiply
    const int part = warp - kWarps;
    // A warp each fetches activations, codes and scales: to issue a copy takes 50 ns.
    int stage = 0;
    uint32_t parity = 1;                               // passes in the first round
    bool waited = !args.dependent_launch || part > 0;  // weights do not depend on the kernel before
#pragma unroll 1
    for (int index = first_tile; index < tiles; advance(index)) {
      if (part < kFetchingWarps && lane == 0) {
        const uint32_t scale_bytes = tile.rows * kScaleBytes;
        const uint32_t bytes = part == 0 ? kCodesAt : part == 1 ? tile.rows * kUnitBytes : kGroups * scale_bytes;
        const auto line = [&](int number) { return static_cast<int64_t>(number) * plan.row_groups + tile.row; };
        if (!waited) ptx::wait_for_previous_kernel();
        waited = true;
#pragma unroll 1
        for (int unit = units.begin; unit < units.end; ++unit) {
          const uint32_t to = ring + stage * kStageBytes, barrier = full + stage * kTableStride;
          ptx::mbarrier_wait(empty + stage * kTableStride, parity);
          ptx::mbarrier_arrive_expect(barrier, bytes);
          if (part == 0) {
            ptx::copy_tensor(to, &x_map, unit * kUnitK, tile.token, barrier);
          } else if (part == 1) {
            ptx::copy_bulk(to + kCodesAt, args.codes + line(unit) * kUnitBytes, bytes, barrier);
          } else {
#pragma unroll
            for (int i = 0; i < kGroups; ++i) {
              const int group = kGroups == 2 ? 2 * unit + i : unit >> plan.group_shift;
              ptx::copy_bulk(to + kScalesAt + i * kRowGroups * kScaleBytes, args.scales + line(group) * kScaleBytes,
                             scale_bytes, barrier);
            }
          }
          if (++stage == stages) stage = 0, parity ^= 1;
        }
      }
      __syncwarp();
      // Those below, in which sums pass through the stages.
      if (split > 1 && index >= whole) ptx::cluster_barrier();
      if (kDepth > 1 || (split > 1 && index >= whole)) ptx::named_barrier(kSumsRead, kShape.threads());
    }
    return;
  }

  // ---- Those who multiply.
  const auto gap = [&](int number) { return own + kTableAddress + kTableStride / 2 + number * kTableStride; };
  const auto multiplying_barrier = [] { ptx::named_barrier(kMultiplying, 32 * kWarps); };
  // Its place among the warps along the rows; the units that it takes of every kDepth; the stage of a tile's first
  // unit.
  const int row_warp = warp % kRowWarps, turn = warp / kRowWarps;
  Place first;
  const uint32_t my_codes = ptx::opaque(ring + kCodesAt + row_warp * kUnitBytes + lane * (kBits == 4 ? 16 : 8));
  const uint32_t my_scales = ptx::opaque(ring + kScalesAt + row_warp * kScaleBytes + lane / 4 * 4);
  const uint32_t ring_in_matrices = ptx::opaque((ring - own) / 16);
  ptx::take_registers<kShape.registers()>();
  Table<kBits> table;
  int built = -1;  // the segment whose table is there
  constexpr bool kTwoOuts = kShape.warpgroups() == 2;
  constexpr uint32_t kOtherOut = 16 * kTableStride;
  uint32_t out = gap(warp / 4 * (kTwoOuts ? 32 : 16));  // where results pass through
  uint32_t sums_parity = 0;

#pragma unroll 1
  for (int index = first_tile; index < tiles; advance(index)) {
    float4 sums[2 * kPairs];
    if (tile.segment != built) {
      if (built >= 0) {
        multiplying_barrier();  // everybody is done with the table that is there
        value = codebook_value(tile.segment);
      }
      built = tile.segment;
      table.build(value, plan.table_rounds, warp, kWarps, static_cast<int>(lane), own);
      multiplying_barrier();
    }
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) sums[i] = make_float4(0, 0, 0, 0);
    Place place = first;
    place.advance(turn, stages);
    int left = (units.end - units.begin - turn + kDepth - 1) / kDepth;  // steps
    uint32_t a[kBuffers][4][4];
    uint32_t words[kBits], scale[kGroups];  // codes and scales, loaded before those that are multiplied
    uint32_t last_empty = 0;
    const auto wait_and_load = [&] {
      ptx::mbarrier_wait(full + place.stage * kTableStride, place.parity);
      const uint32_t codes = my_codes + place.stage * kStageBytes, scales = my_scales + place.stage * kStageBytes;
      if constexpr (kBits == 4) {
        const uint4 v = ptx::load_shared_4(codes);
        words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
      } else {
        const uint2 v = ptx::load_shared_2<0>(codes);
        words[0] = v.x, words[1] = v.y;
        if constexpr (kBits == 3) words[2] = ptx::load_shared<256>(codes - lane * 4);
      }
#pragma unroll
      for (int i = 0; i < kGroups; ++i) scale[i] = ptx::load_shared<0>(scales + i * kRowGroups * kScaleBytes);
    };
    const auto decode = [&](uint32_t(&to)[4][4]) {
#pragma unroll
      for (int f = 0; f < 4; ++f) {
        const uint32_t s = scale[f * kGroups / 4];
        const uint32_t lower = __byte_perm(s, 0, 0x1010), upper = __byte_perm(s, 0, 0x3232);
        table.decode(words, f, to[f]);
        to[f][0] = scale_pair<T>(to[f][0], lower), to[f][2] = scale_pair<T>(to[f][2], lower);
        to[f][1] = scale_pair<T>(to[f][1], upper), to[f][3] = scale_pair<T>(to[f][3], upper);
      }
    };
    // Two steps a round, so that which fragments are whose is known when it is compiled.
    const auto step = [&]<int kBuffer>() {
      const uint64_t tokens = 1ull << 62 | 64ull << 32 | (ring_in_matrices + place.stage * (kStageBytes / 16));
      const uint32_t this_empty = empty + place.stage * kTableStride;
      place.advance(kDepth, stages);
      decode(a[kBuffer]);
      ptx::wgmma_fence();
#pragma unroll
      for (int f = 0; f < 4; ++f) ptx::wgmma<T, kTiles>(sums, a[kBuffer][f], tokens + 2 * f);
      ptx::wgmma_commit();
      if (--left > 0) wait_and_load();
      // The fragments that come next are free, and so is the stage before, or this one.
      ptx::wgmma_wait<kBuffers - 1>();
      if (kBuffers == 2 && last_empty != 0 && lane == 0) ptx::mbarrier_arrive(last_empty);
      if (kBuffers == 1 && lane == 0) ptx::mbarrier_arrive(this_empty);
      if (kBuffers == 2) last_empty = this_empty;
    };
    if (left > 0) wait_and_load();
#pragma unroll 1
    while (left > 1) {
      step.template operator()<0>();
      step.template operator()<kBuffers - 1>();
    }
    if (left > 0) step.template operator()<0>();
    ptx::wgmma_wait<0>();
    if (last_empty != 0 && lane == 0) ptx::mbarrier_arrive(last_empty);
    const int passed = first.stage + units.end - units.begin;
    first.parity ^= passed / stages & 1, first.stage = passed % stages;

    // ---- Results: 64 rows x 16 tokens of a warpgroup at a time from fragments to rows of y, by whole 128-byte lines.
    const auto store = [&](int token, float4 low, float4 high) {
      if (args.bias != nullptr) {
        const int row = (tile.row + row_warp) * kGroupRows + static_cast<int>(lane / 4);
        const auto bias = [&](int n) {
          return n < args.n ? to_float<T>(static_cast<const uint16_t*>(args.bias)[n]) : 0;
        };
        const float lower = bias(row), upper = bias(row + 8);
        low.x += lower, low.y += lower, low.z += upper, low.w += upper;
        high.x += lower, high.y += lower, high.z += upper, high.w += upper;
      }
      // A token's 64 rows take a gap: its eight 16 bytes, exchanged by the token so that eight tokens have no
      // conflicts.
      const auto at = [&](uint32_t i, uint32_t eighth) { return out + i * kTableStride + (eighth ^ i % 8) * 16; };
      ptx::store_matrices_transposed(at(lane / 16 * 8 + lane % 8, warp % 4 * 2 + lane / 8 % 2),
                                     make_uint4(pair_of<T>(low.x, low.y), pair_of<T>(low.z, low.w),
                                                pair_of<T>(high.x, high.y), pair_of<T>(high.z, high.w)));
      ptx::named_barrier(kWarpgroupStores + warp / 4, 128);
      const uint32_t i = warp % 4 * 4 + lane / 8, eighth = lane % 8, mine = at(i, eighth);
      token += static_cast<int>(i);
      const int group = row_warp / 4 * 4 + static_cast<int>(eighth / 2);
      const int n = (tile.row + group) * kGroupRows + static_cast<int>(eighth % 2) * 8;
      T* const to = static_cast<T*>(args.y) + token * args.ldy + n;
      if (group < tile.rows && token < min(args.m, tile.token + kTokens)) {
        if (n + 8 <= args.n && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
          *reinterpret_cast<uint4*>(to) = ptx::load_shared_4(mine);
        } else {
#pragma unroll 1
          for (int j = 0; j < 8 && n + j < args.n; ++j) {
            reinterpret_cast<uint16_t*>(to)[j] = ptx::load_shared_short(mine + 2 * j);
          }
        }
      }
      // The next results go where these are read, or where those before were.
      if constexpr (!kTwoOuts) {
        ptx::named_barrier(kWarpgroupStores + warp / 4, 128);
      } else {
        out ^= kOtherOut;
      }
    };
    // Where several have sums of an output, each 16 tokens are one's own by turns, and the others give it theirs,
    // through where its stages were: first the turns of a block, then the blocks of a cluster.
    const bool present = row_warp < tile.rows, warpgroup_present = row_warp / 4 * 4 < tile.rows;
    const auto in_range = [&](int i) { return warpgroup_present && tile.token + 8 * i < args.m; };
    const auto add = [&](int i, uint32_t from) {
      sums[i] = sum_of(sums[i], ptx::load_shared_floats(from));
      sums[i + 1] = sum_of(sums[i + 1], ptx::load_shared_floats(from + 512));
    };
    if constexpr (kDepth > 1) {
      static_assert(kDepth == 2);
      constexpr int kBytes = (kPairs + 1) / 2 * 1024;  // from a warp to its counterpart
      const auto at = [&](int of_turn) { return ring + (of_turn * kRowWarps + row_warp) * kBytes + lane * 16; };
      multiplying_barrier();  // nobody reads a stage any more
#pragma unroll
      for (int i = 0; i < 2 * kPairs; i += 2) {
        if (i / 2 % 2 != turn && present && in_range(i)) {
          ptx::store_shared_floats(at(turn) + i / 4 * 1024, sums[i]);
          ptx::store_shared_floats(at(turn) + i / 4 * 1024 + 512, sums[i + 1]);
        }
      }
      multiplying_barrier();
#pragma unroll
      for (int i = 0; i < 2 * kPairs; i += 2) {
        if (i / 2 % 2 == turn && present && in_range(i)) add(i, at(1 - turn) + i / 4 * 1024);
      }
    }
    const int parts = index < whole ? 1 : split;
    constexpr int kMine = (kPairs + kDepth - 1) / kDepth;
    const int slots = (kMine + parts - 1) / parts;  // 16 tokens that a warp has for its own
    const uint32_t my_sums = ring + warp * slots * 1024 + lane * 16;
    const auto for_each_slot = [&](auto&& act) {
      int owner = 0, slot = 0;
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        if constexpr (kDepth == 1) {
          if (in_range(2 * j)) act(2 * j, owner, slot);
        } else {
          if (turn == 0 && in_range(4 * j)) act(4 * j, owner, slot);
          if (4 * j + 2 < 2 * kPairs && turn == 1 && in_range(4 * j + 2)) act(4 * j + 2, owner, slot);
        }
        if (++owner == parts) owner = 0, ++slot;
      }
    };
    if (parts > 1) {
      ptx::cluster_barrier();  // nobody in the cluster reads a stage any more
      // The network between multiprocessors moves about 14 bytes a clock; a barrier counts what it brings.
      uint32_t bytes = 0;
      for_each_slot([&](int i, int owner, int slot) {
        if (!present) return;
        if (owner == rank) {
          bytes += (parts - 1) * 1024;
          return;
        }
        const int sender = rank - (rank > owner);
        const uint32_t to = ptx::map_to_rank(my_sums + (sender * kWarps * slots + slot) * 1024, owner);
        const uint32_t barrier = ptx::map_to_rank(sums_of_warp(warp), owner);
        ptx::send(to, sums[i], barrier);
        ptx::send(to + 512, sums[i + 1], barrier);
      });
      if (lane == 0) ptx::mbarrier_arrive_expect(sums_of_warp(warp), bytes);
      ptx::mbarrier_wait_cluster(sums_of_warp(warp), sums_parity);
      sums_parity ^= 1;
    }
    for_each_slot([&](int i, int owner, int slot) {
      if (parts > 1) {
        if (owner != rank) return;
#pragma unroll 1
        for (int sender = 0; present && sender < parts - 1; ++sender)
          add(i, my_sums + (sender * kWarps * slots + slot) * 1024);
      }
      store(tile.token + 8 * i, sums[i], sums[i + 1]);
    });
    if (kDepth > 1 || parts > 1) {
      ptx::fence_proxy_async();  // the copy engine writes there next
      ptx::named_barrier_arrive(kSumsRead, kShape.threads());
    }
  }
#endif
}

}  // namespace flute::cuda
