// An experiment: the multiply for 9 to 64 tokens on wgmma (sm_90a only). docs/kernel-notes.md says what is predicted.
//
// Codes become A fragments as in decode.cuh, but a warpgroup's four warps hold 64 rows of one wgmma, whose operand B,
// the activations, the tensor cores read from shared memory once for all of them. A warp fetches its own codes and
// scales (cp.async, counted in groups). Activations come by tensor copies, one for all warpgroups that work on the same
// k (side by side along the rows): one instruction, no address, and no fence before wgmma reads them.
#pragma once

#include "cuda/decode/lookup.cuh"
#include "ptx.cuh"
#include "wide.hpp"

namespace flute::cuda {

template <typename T, int kBits, int kTilesM, int kQuads, int kGroups>
__global__ void __launch_bounds__(128 * max_warpgroups(kTilesM, kQuads), 1)
    wide_kernel(const __grid_constant__ WideArguments args, const __grid_constant__ TensorMap x_map) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  const WidePlan& plan = args.plan;
  extern __shared__ __align__(1024) uint8_t shared_memory[];
  const uint32_t shared_begin = ptx::shared_address(shared_memory);
  if (shared_begin > kTableAddress) __trap();
  if (args.dependent_launch) ptx::let_next_kernel_start();
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  const auto keep = [&](auto value) { return __shfl_sync(~0u, value, threadIdx.x % 32); };  // as in decode.cuh
  const uint32_t lane = keep(threadIdx.x % 32);

  // ---- Rows of the block, of the warpgroup (side by side), of the warp: row group 4 q + warp % 4 of the warpgroup's.
  int segment = 0, block = blockIdx.x;
  if (plan.deal.segments > 1) {
#pragma unroll 1
    while (block >= plan.deal.share[segment].blocks) block -= plan.deal.share[segment++].blocks;
  }
  const RowShare& share = plan.deal.share[segment];
  const uint32_t value = static_cast<const uint16_t*>(args.codebooks)[(segment << kBits) + lane % (1 << kBits)];
  const int warpgroup = warp / 4, side = warp % 4;
  const int row_warpgroups = plan.row_warpgroups, k_warpgroup = warpgroup * plan.row_warpgroups_inverse >> 8;
  const int row_warpgroup = warpgroup - k_warpgroup * row_warpgroups;
  const int block_row = share.first + share_begin(share.each, share.longer, block);
  const int block_rows = share.each + (block < share.longer);
  const int begin = row_warpgroup * (4 * kQuads);                            // the last warpgroup has fewer
  const int rows = min(max(block_rows - begin - side + 3, 0) >> 2, kQuads);  // of this warp
  const int row = block_row + begin + side;

  // ---- Fetching, in pieces of 16 bytes.
  constexpr int kStages = wide_stages(kTilesM, kQuads), kAhead = kStages - 1;
  constexpr int kUnitBytes = unit_bytes(kBits), kRowPieces = kUnitBytes / 16;
  constexpr int kScalesAt = kQuads * kUnitBytes, kStage = wide_codes_stage(kBits, kQuads, kGroups);
  constexpr int kXStage = kTilesM * 1024;
  const auto piece = [](const uint8_t* base, uint32_t at) { return base + static_cast<uint64_t>(at) * 16; };
  const uint32_t codes_ring = keep(kTableAddress + plan.codes_at + warp * (kStages * kStage) + lane * 16);
  const uint32_t x_ring = __shfl_sync(~0u, kTableAddress + plan.x_at + k_warpgroup * (kStages * kXStage), 0);
  const int units = plan.units, step_units = plan.k_warpgroups;
  int fetch_unit = k_warpgroup;
  uint32_t codes_of[kQuads];  // this lane's piece of the next step
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    codes_of[q] = (row + 4 * q) * plan.row_pieces + k_warpgroup * kRowPieces + lane;
  }
  // Lanes 2 kGroups q + i: piece i of the scales of row group q.
  const int scale_quad = static_cast<int>(lane / (2 * kGroups));
  const uint32_t scales_of =
      keep((row + 4 * scale_quad) * static_cast<uint32_t>(plan.groups * (kScaleBytes / 16)) + lane % (2 * kGroups));
  const auto fetch_weights = [&](uint32_t to) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      if (q < rows && (kRowPieces == 32 || lane < kRowPieces)) {
        ptx::copy_16(to + q * kUnitBytes, piece(args.codes, codes_of[q]));
      }
      codes_of[q] += step_units * kRowPieces;
    }
    if (scale_quad < rows) {
      const uint32_t group = kGroups == 2 ? 2 * fetch_unit : fetch_unit >> plan.group_shift;
      ptx::copy_16(to + kScalesAt, piece(args.scales, scales_of + group * (kScaleBytes / 16)));
    }
  };
  // Activations: [token][64 k], the 16-byte pieces of a token swizzled as wgmma expects it; what lies beyond K or M
  // comes as zeros. One lane fetches for all warpgroups of this k. A stage's barriers, in a gap of the table: it is
  // there; all warpgroups have read it.
  const bool fetches = row_warpgroup == 0 && side == 0 && lane == 0, alone = row_warpgroups == 1;
  const uint32_t full = kTableAddress + kTableStride / 2 + k_warpgroup * kTableStride, empty = full + 64;
  if (fetches) {
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(full + 8 * i, 1);
      ptx::mbarrier_init(empty + 8 * i, row_warpgroups);
    }
    ptx::fence_mbarrier_init();
  }
  const auto fetch_tokens = [&](uint32_t to, uint32_t barrier) {
    ptx::mbarrier_arrive_expect(barrier, kXStage);
    ptx::copy_tensor(to, &x_map, fetch_unit * kUnitK, 0, barrier);
  };

  fetch_weights(codes_ring);
  Table<kBits> table;
  table.build(value, plan.table_rounds, warp, static_cast<int>(blockDim.x / 32), lane);
  if (args.dependent_launch) ptx::wait_for_previous_kernel();
  if (fetches) fetch_tokens(x_ring, full);
  ptx::copy_commit();
  fetch_unit += step_units;
#pragma unroll
  for (int i = 1; i < kAhead; ++i) {
    if (fetch_unit < units) {
      fetch_weights(codes_ring + i * kStage);
      if (fetches) fetch_tokens(x_ring + i * kXStage, full + 8 * i);
    }
    ptx::copy_commit();
    fetch_unit += step_units;
  }
  __syncthreads();  // the table and the barriers are there

  float4 sums[kQuads][kTilesM];
  uint32_t a[kQuads][4][4];
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) sums[q][i] = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < 16; ++i) a[q][i / 4][i % 4] = 0;  // a warp without rows multiplies zeros
  }
  // The stage in work, and the one that is filled meanwhile: the one before it, whose barriers are at 8 * `back`.
  int stage = 0, back = kAhead;
  uint32_t codes = codes_ring, codes_back = codes_ring + kAhead * kStage;
  uint32_t parity = 0, back_parity = 1;  // 1 passes in the first round
  const uint32_t scales_at = keep(kScalesAt - lane * 16 + lane / 4 * 4);

#pragma unroll 1
  for (; fetch_unit < units + kAhead * step_units; fetch_unit += step_units) {  // it is kAhead steps ahead
    ptx::copy_wait<kAhead - 1>();
    __syncwarp();
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      if (q == 0) ptx::wgmma_wait<kQuads - 1>();  // the last step's, of these fragments
      if (q < rows) {
        uint32_t words[kBits], scales[kGroups];
        const uint32_t at = codes + q * kUnitBytes;
        if constexpr (kBits == 4) {
          const uint4 v = ptx::load_shared_4(at);
          words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
        } else {
          const uint2 v = ptx::load_shared_2<0>(at - lane * 8);
          words[0] = v.x, words[1] = v.y;
          if constexpr (kBits == 3) words[2] = ptx::load_shared<256>(at - lane * 12);
        }
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
          scales[i] = ptx::load_shared<0>(codes + scales_at + (q * kGroups + i) * kScaleBytes);
        }
#pragma unroll
        for (int f = 0; f < 4; ++f) {
          const uint32_t s = scales[f * kGroups / 4];
          const uint32_t lower = __byte_perm(s, 0, 0x1010), upper = __byte_perm(s, 0, 0x3232);
          decode_fragment<kBits, 0>(words, f, table, a[q][f]);
          a[q][f][0] = scale_pair<T>(a[q][f][0], lower), a[q][f][2] = scale_pair<T>(a[q][f][2], lower);
          a[q][f][1] = scale_pair<T>(a[q][f][1], upper), a[q][f][3] = scale_pair<T>(a[q][f][3], upper);
        }
      }
      if (q == 0) {
        ptx::wgmma_wait<0>();  // this warpgroup has read the last step's activations
        if (!alone) {
          const bool first = fetch_unit == k_warpgroup + kAhead * step_units;  // step
          if (side == 0 && lane == 0 && !first) ptx::mbarrier_arrive(empty + 8 * back);
        }
        if (fetch_unit < units) {
          fetch_weights(codes_back);
          if (fetches) {
            if (!alone) ptx::mbarrier_wait(empty + 8 * back, back_parity);
            fetch_tokens(x_ring + back * kXStage, full + 8 * back);
          }
        }
        ptx::copy_commit();
        ptx::mbarrier_wait(full + 8 * stage, parity);
        __syncwarp();
      }
      ptx::wgmma_fence();
      const uint64_t descriptor = 1ull << 62 | 64ull << 32 | (x_ring + stage * kXStage) >> 4;
#pragma unroll
      for (int f = 0; f < 4; ++f) ptx::wgmma<T, kTilesM>(sums[q], a[q][f], descriptor + 2 * f);
      ptx::wgmma_commit();
    }
    codes_back = codes, back = stage, back_parity ^= stage == 0;
    stage = stage == kAhead ? 0 : stage + 1;
    codes = codes_ring + stage * kStage;
    parity ^= stage == 0;
  }
  ptx::wgmma_wait<0>();

  // ---- The sums of the warpgroups along K meet where the stages were.
  const int k_warpgroups = plan.k_warpgroups;
  const auto store = [&](int q, int tile, float4 v) {
    const int n = (row + 4 * q) * kGroupRows + static_cast<int>(lane / 4), token = 8 * tile + lane % 4 * 2;
    const auto one = [&](int at_n, int at_token, float sum) {
      if (at_n >= args.n || at_token >= args.m) return;
      if (args.bias != nullptr) sum += static_cast<float>(static_cast<const T*>(args.bias)[at_n]);
      static_cast<T*>(args.y)[at_token * args.ldy + at_n] = from_float<T>(sum);
    };
    one(n, token, v.x), one(n, token + 1, v.y), one(n + 8, token, v.z), one(n + 8, token + 1, v.w);
  };
  if (k_warpgroups == 1) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
        if (q < rows) store(q, i, sums[q][i]);
      }
    }
    return;
  }
  __syncthreads();  // nobody reads a stage any more
  uint8_t* const all = shared_memory + (kTableAddress - shared_begin) + plan.x_at;
  constexpr int kWarpSums = kQuads * kTilesM * 512;
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
      reinterpret_cast<float4*>(all + warp * kWarpSums)[(q * kTilesM + i) * 32 + lane] = sums[q][i];
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = k_warpgroup; i < rows * kTilesM; i += k_warpgroups) {
    const float4* from = reinterpret_cast<const float4*>(all + (row_warpgroup * 4 + side) * kWarpSums) + i * 32 + lane;
    float4 sum = *from;
    for (int k = 1; k < k_warpgroups; ++k) {
      from += row_warpgroups * (4 * kWarpSums / 16);
      sum.x += from->x, sum.y += from->y, sum.z += from->z, sum.w += from->w;
    }
    store(i / kTilesM, i % kTilesM, sum);
  }
#endif
}

}  // namespace flute::cuda
