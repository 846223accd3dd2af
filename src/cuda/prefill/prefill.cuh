// Y[M, N] = X[M, K] * W[N, K]^T for many tokens on Hopper, W in 2-, 3- or 4-bit codes of any table: bound by the tensor
// cores.
//
// Weights are operand A of wgmma, out of registers; tokens are operand B, out of shared memory. One warp fetches:
// a stage is a unit of k (64) of a tile's activations (a tensor copy, swizzled as wgmma reads it) and of its codes and
// scales (contiguous in the layout: two bulk copies). Two warpgroups multiply. A warp reads the codes of its 16 rows,
// looks them up as in decode (lookup.cuh), multiplies them with their scales, and hands four fragments to four wgmmas;
// while the tensor cores work on these, it decodes the next four into other registers.
#pragma once

#include "cuda/decode/lookup.cuh"
#include "cuda/prefill/arguments.hpp"
#include "cuda/ptx/hopper.cuh"

namespace flute::cuda {

// Gaps of the table (the free half of each entry's 256 bytes): the barriers of stage i in gap kBarrierGap + i, and
// before them four gaps for each multiplying warp, in which its results change from fragments to rows of y.
constexpr int kBarrierGap = 4 * kMultiplyingWarps;

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

template <typename T, int kBits, int kQuads, int kTokens, int kGroups>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    prefill_kernel(const __grid_constant__ PrefillArguments args, const __grid_constant__ TensorMap x_map) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  constexpr int kUnitBytes = unit_bytes(kBits), kRowGroups = 8 * kQuads, kTiles = kTokens / 8;
  constexpr int kCodesAt = codes_in_stage(kTokens), kScalesAt = scales_in_stage(kBits, kQuads, kTokens);
  constexpr int kStageBytes = prefill_stage_bytes(kBits, kQuads, kTokens, kGroups);
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
  const uint32_t ring = own + kTableAddress + table_bytes(kBits);
  if (warp == kMultiplyingWarps && lane == 0) {
    for (int i = 0; i < stages; ++i) {
      ptx::mbarrier_init(full + i * kTableStride, 1);
      ptx::mbarrier_init(empty + i * kTableStride, kMultiplyingWarps);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();

  // ---- Tiles by turns; this block's units of K.
  const int split = plan.split, rank = split > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;
  const int tiles = plan.deal.blocks * plan.token_tiles;
  const int cluster = static_cast<int>(blockIdx.x) / split, clusters = static_cast<int>(gridDim.x) / split;
  const int each = plan.units / split, longer = plan.units - each * split;
  const int unit_begin = share_begin(each, longer, rank), unit_end = unit_begin + each + (rank < longer);
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

  if (warp >= kMultiplyingWarps) {
    ptx::give_registers<40>();  // to those who multiply
    int stage = 0;
    uint32_t parity = 1;  // passes in the first round
    bool waited = !args.dependent_launch;
#pragma unroll 1
    for (int index = cluster; index < tiles; index += clusters) {
      if (warp == kMultiplyingWarps && lane == 0) {
        const Tile tile = tile_at(index);
        const uint32_t code_bytes = tile.rows * kUnitBytes, scale_bytes = tile.rows * kScaleBytes;
#pragma unroll 1
        for (int unit = unit_begin; unit < unit_end; ++unit) {
          const uint32_t to = ring + stage * kStageBytes, barrier = full + stage * kTableStride;
          ptx::mbarrier_wait(empty + stage * kTableStride, parity);
          ptx::mbarrier_arrive_expect(barrier, kCodesAt + code_bytes + kGroups * scale_bytes);
          const auto line = [&](int number) { return static_cast<int64_t>(number) * plan.row_groups + tile.row; };
          ptx::copy_bulk(to + kCodesAt, args.codes + line(unit) * kUnitBytes, code_bytes, barrier);
#pragma unroll
          for (int i = 0; i < kGroups; ++i) {
            const int group = kGroups == 2 ? 2 * unit + i : unit >> plan.group_shift;
            ptx::copy_bulk(to + kScalesAt + i * kRowGroups * kScaleBytes, args.scales + line(group) * kScaleBytes,
                           scale_bytes, barrier);
          }
          if (!waited) ptx::wait_for_previous_kernel();  // weights do not depend on it
          waited = true;
          ptx::copy_tensor(to, &x_map, unit * kUnitK, tile.token, barrier);
          if (++stage == stages) stage = 0, parity ^= 1;
        }
      }
      __syncwarp();
      if (split > 1) ptx::cluster_barrier(), ptx::cluster_barrier();  // those below
    }
    return;
  }

  // ---- Those who multiply.
  ptx::take_registers<232>();
  const auto gap = [&](int number) { return own + kTableAddress + kTableStride / 2 + number * kTableStride; };
  const auto multiplying_barrier = [] { ptx::named_barrier(1, 32 * kMultiplyingWarps); };
  int stage = 0, segment = -1;
  uint32_t parity = 0;
  Table<kBits> table;

#pragma unroll 1
  for (int index = cluster; index < tiles; index += clusters) {
    const Tile tile = tile_at(index);
    float4 sums[kQuads][kTiles];
    if (tile.segment != segment) {
      if (segment >= 0) multiplying_barrier();  // everybody is done with the table that is there
      segment = tile.segment;
      const uint32_t value =
          ptx::load_global_2(static_cast<const uint16_t*>(args.codebooks) + (segment << kBits) + lane % (1 << kBits));
      table.build(value, plan.table_rounds, warp, kMultiplyingWarps, static_cast<int>(lane), own);
      multiplying_barrier();
    }
#pragma unroll
    for (int i = 0; i < kQuads * kTiles; ++i) sums[i / kTiles][i % kTiles] = make_float4(0, 0, 0, 0);
    uint32_t a[2][4][4];  // what the tensor cores work on, and what is decoded meanwhile
    uint32_t last_empty = 0;
    // Codes of row group 8 q + warp: rows 16 (warp % 4) .. of the warpgroup's wgmma.
    const auto decode = [&](uint32_t at, int q, uint32_t(&to)[4][4]) {
      const uint32_t codes = at + kCodesAt + (8 * q + warp) * kUnitBytes;
      const uint32_t scales = at + kScalesAt + (8 * q + warp) * kScaleBytes + lane / 4 * 4;
      uint32_t words[kBits], scale[kGroups];
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
#pragma unroll
      for (int f = 0; f < 4; ++f) {
        const uint32_t s = scale[f * kGroups / 4];
        const uint32_t lower = __byte_perm(s, 0, 0x1010), upper = __byte_perm(s, 0, 0x3232);
        decode_fragment<kBits, 0>(words, f, table, to[f]);
        to[f][0] = scale_pair<T>(to[f][0], lower), to[f][2] = scale_pair<T>(to[f][2], lower);
        to[f][1] = scale_pair<T>(to[f][1], upper), to[f][3] = scale_pair<T>(to[f][3], upper);
      }
    };
    const auto step = [&]<int kFirst>() {
      const uint32_t at = ring + stage * kStageBytes;
      ptx::mbarrier_wait(full + stage * kTableStride, parity);
      const uint64_t tokens = 1ull << 62 | 64ull << 32 | (at - own) >> 4;
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        uint32_t(&fragments)[4][4] = a[(kFirst + q) % 2];
        decode(at, q, fragments);
        ptx::wgmma_fence();
#pragma unroll
        for (int f = 0; f < 4; ++f) ptx::wgmma<T, kTiles>(sums[q], fragments[f], tokens + 2 * f);
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();  // all but these: the other fragments are free, and so is the stage before
        if (q == 0 && last_empty != 0 && lane == 0) ptx::mbarrier_arrive(last_empty);
      }
      last_empty = empty + stage * kTableStride;
      if (++stage == stages) stage = 0, parity ^= 1;
    };
    // Two steps, so that which fragments are whose is known when it is compiled.
    int unit = unit_begin;
#pragma unroll 1
    for (; unit + 1 < unit_end; unit += 2) {
      step.template operator()<0>();
      step.template operator()<kQuads % 2>();
    }
    if (unit < unit_end) step.template operator()<0>();
    ptx::wgmma_wait<0>();
    if (last_empty != 0 && lane == 0) ptx::mbarrier_arrive(last_empty);

    // ---- Results: 16 rows x 16 tokens at a time from two fragments to rows of y.
    const auto store = [&](int q, int token, float4 first, float4 second) {
      const int row = (tile.row + 8 * q + warp) * kGroupRows;
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
    if (split == 1) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        if (8 * q + warp >= tile.rows) break;
#pragma unroll
        for (int i = 0; i < kTiles; i += 2) {
          if (tile.token + 8 * i < args.m) store(q, tile.token + 8 * i, sums[q][i], sums[q][i + 1]);
        }
      }
      continue;
    }
    // The blocks of the cluster put their sums where the stages were; each adds up those of its share of the tokens.
    const auto sum_at = [&](int q, int i) {
      return ring + static_cast<uint32_t>((warp * kQuads + q) * kTiles + i) * 512 + lane * 16;
    };
    {
      multiplying_barrier();  // nobody reads a stage any more
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        if (8 * q + warp >= tile.rows) break;
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const float4 v = sums[q][i];
          ptx::store_shared_4(sum_at(q, i), make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z),
                                                       __float_as_uint(v.w)));
        }
      }
    }
    ptx::cluster_barrier();
    {
      const int share = kTiles / split;
#pragma unroll 1
      for (int q = 0; q < kQuads && 8 * q + warp < tile.rows; ++q) {
#pragma unroll 1
        for (int i = rank * share; i < (rank + 1) * share && tile.token + 8 * i < args.m; i += 2) {
          float4 first = make_float4(0, 0, 0, 0), second = first;
          for (int other = 0; other < split; ++other) {
            const float4 v = ptx::load_cluster_4(ptx::map_to_rank(sum_at(q, i), other));
            const float4 w = ptx::load_cluster_4(ptx::map_to_rank(sum_at(q, i + 1), other));
            first.x += v.x, first.y += v.y, first.z += v.z, first.w += v.w;
            second.x += w.x, second.y += w.y, second.z += w.z, second.w += w.w;
          }
          store(q, tile.token + 8 * i, first, second);
        }
      }
      ptx::fence_proxy_async();  // the copy engine writes there next
    }
    ptx::cluster_barrier();
  }
#endif
}

}  // namespace flute::cuda
