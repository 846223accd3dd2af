// Y[M, N] = X[M, K] * W[N, K]^T for many tokens on Hopper, W in 2-, 3- or 4-bit codes of any table: bound by the tensor
// cores.
//
// Weights are operand A of wgmma, out of registers; tokens are operand B, out of shared memory. Three warps fetch:
// a stage is a unit of k (64) of a tile's activations (a tensor copy, swizzled as wgmma reads it) and of its codes and
// scales (contiguous in the layout: two bulk copies). Two or four warpgroups multiply. A warp reads the codes of its 16
// rows, looks them up as in decode (lookup.cuh), multiplies them with their scales, and hands four fragments to four
// wgmmas. While the tensor cores work on these, other warpgroups decode, and where registers allow the warp itself
// decodes the next four.
#pragma once

#include "cuda/decode/lookup.cuh"
#include "cuda/prefill/arguments.hpp"
#include "cuda/ptx/hopper.cuh"

namespace flute::cuda {

// Two sums, rounded to T.
template <typename T>
__device__ inline uint32_t pair_of(float low, float high);
template <>
__device__ inline uint32_t pair_of<__half>(float low, float high) {
  const __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
template <>
__device__ inline uint32_t pair_of<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

template <typename T, int kBits, int kTile, int kGroups>
__global__ void __launch_bounds__(kPrefillTiles[kTile].threads(), 1)
    prefill_kernel(const __grid_constant__ PrefillArguments args, const __grid_constant__ TensorMap x_map) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  constexpr PrefillTile kShape = kPrefillTiles[kTile];
  constexpr int kQuads = kShape.quads, kTokens = kShape.tokens, kTiles = kTokens / 8;
  constexpr int kRowWarps = 4 * kShape.row_warpgroups, kWarps = 4 * kShape.warpgroups(), kDepth = kShape.depth;
  constexpr int kUnitBytes = unit_bytes(kBits), kRowGroups = kShape.row_groups();
  constexpr int kCodesAt = codes_in_stage(kTokens), kScalesAt = scales_in_stage(kBits, kShape);
  constexpr int kStageBytes = prefill_stage_bytes(kBits, kShape, kGroups);
  constexpr int kBuffers = kShape.fragment_buffers();
  const PrefillPlan& plan = args.plan;
  extern __shared__ __align__(1024) uint8_t shared_memory[];
  // In a cluster, addresses of a block's own shared memory carry its rank in their high bits.
  const uint32_t shared_begin = ptx::shared_address(shared_memory), own = shared_begin & ~0xffffffu;
  if (shared_begin - own > kTableAddress) __trap();
  if (args.dependent_launch) ptx::let_next_kernel_start();
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const uint32_t lane = threadIdx.x % 32;
  const int stages = plan.stages;
  const uint32_t full = own + kTableAddress + kBarrierGap * kTableStride + kTableStride / 2, empty = full + 8;
  const uint32_t ring = own + kTableAddress + prefill_table_bytes(kBits);
  if (warp == kWarps && lane == 0) {
    for (int i = 0; i < stages; ++i) {
      ptx::mbarrier_init(full + i * kTableStride, kFetchingWarps);
      ptx::mbarrier_init(empty + i * kTableStride, kRowWarps);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();

  // ---- Tiles by turns: first those that a block has for itself, then those whose units of K a cluster shares out.
  const int split = plan.split, rank = split > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;
  const int tiles = plan.deal.blocks * plan.token_tiles, whole = plan.whole_tiles;
  const int cluster = static_cast<int>(blockIdx.x) / split, clusters = static_cast<int>(gridDim.x) / split;
  const int each = plan.units / split, longer = plan.units - each * split;
  const int first_tile = whole > 0 ? static_cast<int>(blockIdx.x) : cluster;
  const auto next_tile = [&](int index) {
    if (index >= whole) return index + clusters;
    index += static_cast<int>(gridDim.x);
    return index < whole ? index : whole + cluster;
  };
  struct Units {
    int begin, end;
  };
  const auto units_of = [&](int index) {
    if (index < whole) return Units{0, plan.units};
    const int begin = share_begin(each, longer, rank);
    return Units{begin, begin + each + (rank < longer)};
  };
  struct Tile {
    int segment, row, rows, token;  // row groups
  };
  const auto tile_at = [&](int index) {
    int row_tile = index / plan.token_tiles, segment = 0;
    const int token = (index - row_tile * plan.token_tiles) * kTokens;
    if (plan.deal.segments > 1) {
#pragma unroll 1
      while (row_tile >= plan.deal.share[segment].blocks) row_tile -= plan.deal.share[segment++].blocks;
    }
    const RowShare& share = plan.deal.share[segment];
    return Tile{segment, share.first + share_begin(share.each, share.longer, row_tile),
                share.each + (row_tile < share.longer), token};
  };

  if (warp >= kWarps) {
    ptx::give_registers<kShape.other_registers()>();  // to those who multiply
    // A warp each fetches activations, codes and scales: to issue a copy takes 50 ns.
    const int part = warp - kWarps;
    int stage = 0;
    uint32_t parity = 1;                               // passes in the first round
    if (part == 0 && lane == 0) ptx::prefetch_tensor_map(&x_map);
    bool waited = !args.dependent_launch || part > 0;  // weights do not depend on the kernel before
#pragma unroll 1
    for (int index = first_tile; index < tiles; index = next_tile(index)) {
      if (part < kFetchingWarps && lane == 0) {
        const Tile tile = tile_at(index);
        const Units units = units_of(index);
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
      if (kDepth > 1 || (split > 1 && index >= whole)) ptx::cluster_barrier(), ptx::cluster_barrier();  // those below
    }
    return;
  }

  // ---- Those who multiply.
  ptx::take_registers<kShape.registers()>();
  const auto gap = [&](int number) { return own + kTableAddress + kTableStride / 2 + number * kTableStride; };
  const auto multiplying_barrier = [] { ptx::named_barrier(1, 32 * kWarps); };
  // Its place among the warps along the rows; the units that it takes of every kDepth; the stage of a tile's first
  // unit.
  const int row_warp = warp % kRowWarps, turn = warp / kRowWarps;
  int first_stage = 0, segment = -1;
  uint32_t first_parity = 0;
  Table<kBits> table;

#pragma unroll 1
  for (int index = first_tile; index < tiles; index = next_tile(index)) {
    const Tile tile = tile_at(index);
    const Units units = units_of(index);
    float4 sums[kQuads][kTiles];
    if (tile.segment != segment) {
      if (segment >= 0) multiplying_barrier();  // everybody is done with the table that is there
      segment = tile.segment;
      const uint32_t value =
          ptx::load_global_2(static_cast<const uint16_t*>(args.codebooks) + (segment << kBits) + lane % (1 << kBits));
      table.build(value, plan.table_rounds, warp, kWarps, static_cast<int>(lane), own);
      multiplying_barrier();
    }
#pragma unroll
    for (int i = 0; i < kQuads * kTiles; ++i) sums[i / kTiles][i % kTiles] = make_float4(0, 0, 0, 0);
    const auto advance = [&](int& stage, uint32_t& parity, int by) {
      stage += by;
      if (stage >= stages) stage -= stages, parity ^= 1;
    };
    int stage = first_stage;
    uint32_t parity = first_parity;
    advance(stage, parity, turn);
    int left = (units.end - units.begin - turn + kDepth - 1) / kDepth;  // steps
    uint32_t a[kBuffers][4][4];
    uint32_t words[kBits], scale[kGroups];  // codes and scales, loaded before those that are multiplied
    uint32_t last_empty = 0;
    // Those of row group kRowWarps q + row_warp: rows 16 (warp % 4) .. of the warpgroup's wgmma.
    const auto load = [&](uint32_t at, int q) {
      const uint32_t codes = at + kCodesAt + (kRowWarps * q + row_warp) * kUnitBytes;
      const uint32_t scales = at + kScalesAt + (kRowWarps * q + row_warp) * kScaleBytes + lane / 4 * 4;
      if constexpr (kBits == 4) {
        const uint4 v = ptx::load_shared_4(codes + lane * 16);
        words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
      } else {
        const uint2 v = ptx::load_shared_2<0>(codes + lane * 8);
        words[0] = v.x, words[1] = v.y;
        if constexpr (kBits == 3) words[2] = ptx::load_shared<256>(codes + lane * 4);
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
    const auto step = [&]<int kFirst>() {
      const uint32_t at = ring + stage * kStageBytes, this_empty = empty + stage * kTableStride;
      const uint64_t tokens = 1ull << 62 | 64ull << 32 | (at - own) >> 4;
      advance(stage, parity, kDepth);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        uint32_t(&fragments)[4][4] = a[(kFirst + q) % kBuffers];
        decode(fragments);
        ptx::wgmma_fence();
#pragma unroll
        for (int f = 0; f < 4; ++f) ptx::wgmma<T, kTiles>(sums[q], fragments[f], tokens + 2 * f);
        ptx::wgmma_commit();
        if (q + 1 < kQuads) {
          load(at, q + 1);
        } else if (--left > 0) {
          ptx::mbarrier_wait(full + stage * kTableStride, parity);
          load(ring + stage * kStageBytes, 0);
        }
        // The fragments that come next are free, and so is the stage before, or this one.
        ptx::wgmma_wait<kBuffers - 1>();
        if (kBuffers == 2 && q == 0 && last_empty != 0 && lane == 0) ptx::mbarrier_arrive(last_empty);
        if (kBuffers == 1 && q == kQuads - 1 && lane == 0) ptx::mbarrier_arrive(this_empty);
      }
      if (kBuffers == 2) last_empty = this_empty;
    };
    if (left > 0) {
      ptx::mbarrier_wait(full + stage * kTableStride, parity);
      load(ring + stage * kStageBytes, 0);
    }
    // Two steps, so that which fragments are whose is known when it is compiled.
#pragma unroll 1
    while (left > 1) {
      step.template operator()<0>();
      step.template operator()<kQuads % 2>();
    }
    if (left > 0) step.template operator()<0>();
    ptx::wgmma_wait<0>();
    if (last_empty != 0 && lane == 0) ptx::mbarrier_arrive(last_empty);
    const int passed = first_stage + units.end - units.begin;
    first_parity ^= passed / stages & 1, first_stage = passed % stages;

    // ---- Results: 16 rows x 16 tokens at a time from two fragments to rows of y.
    const auto store = [&](int q, int token, float4 first, float4 second) {
      const int row = (tile.row + kRowWarps * q + row_warp) * kGroupRows;
      if (args.bias != nullptr) {
        const auto bias = [&](int n) {
          return n < args.n ? to_float<T>(static_cast<const uint16_t*>(args.bias)[n]) : 0;
        };
        const float lower = bias(row + static_cast<int>(lane / 4)), upper = bias(row + 8 + static_cast<int>(lane / 4));
        first.x += lower, first.y += lower, first.z += upper, first.w += upper;
        second.x += lower, second.y += lower, second.z += upper, second.w += upper;
      }
      // Token i of the 16 takes 32 bytes, the halves of 8 rows swapped in every second four of tokens: no conflicts.
      const auto place = [&](uint32_t i, uint32_t half) {
        return gap(4 * warp) + i / 4 * kTableStride + i % 4 * 32 + (half ^ (i / 4 % 2)) * 16;
      };
      ptx::store_matrices_transposed(place(lane / 16 * 8 + lane % 8, lane / 8 % 2),
                                     make_uint4(pair_of<T>(first.x, first.y), pair_of<T>(first.z, first.w),
                                                pair_of<T>(second.x, second.y), pair_of<T>(second.z, second.w)));
      __syncwarp();
      const uint4 v = ptx::load_shared_4(place(lane / 2, lane % 2));
      __syncwarp();
      token += static_cast<int>(lane / 2);
      const int n = row + static_cast<int>(lane % 2) * 8;
      if (token >= args.m) return;
      T* const to = static_cast<T*>(args.y) + token * args.ldy + n;
      if (n + 8 <= args.n && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
        *reinterpret_cast<uint4*>(to) = v;
      } else {
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (n + i < args.n) {
            reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
          }
        }
      }
    };
    const int parts = (index < whole ? 1 : split) * kDepth, part_rank = index < whole ? 0 : rank;
    if (parts == 1) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        if (kRowWarps * q + row_warp >= tile.rows) break;
#pragma unroll
        for (int i = 0; i < kTiles; i += 2) {
          if (tile.token + 8 * i < args.m) store(q, tile.token + 8 * i, sums[q][i], sums[q][i + 1]);
        }
      }
      continue;
    }
    // Sums go to where the stages were; each warp adds up those of its rows and its share of the tokens from all turns
    // and all blocks of the cluster.
    const auto sum_at = [&](int of_turn, int q, int i) {
      return ring + static_cast<uint32_t>(((of_turn * kRowWarps + row_warp) * kQuads + q) * kTiles + i) * 512 +
             lane * 16;
    };
    multiplying_barrier();  // nobody reads a stage any more
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      if (kRowWarps * q + row_warp >= tile.rows) break;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const float4 v = sums[q][i];
        ptx::store_shared_4(sum_at(turn, q, i), make_uint4(__float_as_uint(v.x), __float_as_uint(v.y),
                                                           __float_as_uint(v.z), __float_as_uint(v.w)));
      }
    }
    ptx::cluster_barrier();
#pragma unroll 1
    for (int q = 0; q < kQuads && kRowWarps * q + row_warp < tile.rows; ++q) {
#pragma unroll 1
      for (int i = 2 * (part_rank * kDepth + turn); i < kTiles && tile.token + 8 * i < args.m; i += 2 * parts) {
        float4 first = make_float4(0, 0, 0, 0), second = first;
        for (int part = 0; part < parts; ++part) {
          const auto value = [&](int j) {
            const uint32_t at = sum_at(part % kDepth, q, j);
            if (parts > kDepth) return ptx::load_cluster_4(ptx::map_to_rank(at, part / kDepth));
            const uint4 v = ptx::load_shared_4(at);
            return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
          };
          const float4 v = value(i), w = value(i + 1);
          first.x += v.x, first.y += v.y, first.z += v.z, first.w += v.w;
          second.x += w.x, second.y += w.y, second.z += w.z, second.w += w.w;
        }
        store(q, tile.token + 8 * i, first, second);
      }
    }
    ptx::fence_proxy_async();  // the copy engine writes there next
    ptx::cluster_barrier();
  }
#endif
}

}  // namespace flute::cuda
