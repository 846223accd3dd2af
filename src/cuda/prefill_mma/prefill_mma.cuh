// Y[M, N] = X[M, K] * W[N, K]^T for many tokens on cards before Hopper, W in 2-, 3- or 4-bit codes of any table: bound
// by the tensor cores.
//
// A warp multiplies 32 rows with 128 tokens, or 64 with 64: weights are operand A of mma.m16n8k16, tokens operand
// B. It reads the codes of its row groups, looks them up as in decode (lookup.cuh) and multiplies them with their
// scales; activations come by ldmatrix. Codes, scales and activations of a unit of k (64) are a stage in shared memory,
// filled by cp.async. The warps of a block share a tile of rows x tokens, or take units of K by turns and add up at the
// end; those that share units are a group, with stages and a barrier of its own.
//
// The tensor cores never wait for a stage's beginning: while the last 16 k of a unit are multiplied, the first
// fragments of the next are loaded and decoded. Then nobody needs the stage any more, and it is filled again.
#pragma once

#include "cuda/decode/lookup.cuh"
#include "cuda/prefill_mma/arguments.hpp"

namespace flute::cuda {

// kRows: row groups of a warp. kGroups: scale groups in a unit.
template <typename T, int kBits, int kRows, int kRowWarps, int kGroups>
__global__ void __launch_bounds__(256, 1) prefill_mma_kernel(const __grid_constant__ PrefillMmaArguments args) {
  constexpr int kTokens = mma_tokens(kRows), kPairs = kTokens / 16, kTiles = kTokens / 8;
  constexpr uint32_t kLine = kLineBytes, kHalf = kHalfLine;
  const PrefillMmaPlan& plan = args.plan;
  extern __shared__ __align__(1024) uint8_t shared_memory[];
  if (ptx::shared_address(shared_memory) > kTableAddress) __trap();
  if (args.dependent_launch) ptx::let_next_kernel_start();
  const uint32_t lane = threadIdx.x % 32;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);  // known to be the same for all lanes

  // ---- This block's tile: rows of one segment.
  int segment = 0, row_tile = static_cast<int>(blockIdx.x) / plan.token_tiles;
  const int token_tile = static_cast<int>(blockIdx.x) - row_tile * plan.token_tiles;
  if (plan.deal.segments > 1) {
#pragma unroll 1
    while (row_tile >= plan.deal.share[segment].blocks) row_tile -= plan.deal.share[segment++].blocks;
  }
  const RowShare& share = plan.deal.share[segment];
  // Asked for before the weights, behind which it would stand in line.
  const uint32_t value =
      ptx::load_global_2(static_cast<const uint16_t*>(args.codebooks) + (segment << kBits) + lane % (1 << kBits));
  __syncwarp();
  const int tile_row = share.first + share_begin(share.each, share.longer, row_tile);  // row groups
  const int tile_rows = share.each + (row_tile < share.longer);

  // ---- This warp's place.
  const PrefillMmaTile& shape = plan.shape;
  const int group_warps = shape.group_warps(), k_warp = warp / group_warps, in_group = warp - k_warp * group_warps;
  const int token_warp = in_group / kRowWarps, row_warp = in_group % kRowWarps;
  const int tile_tokens = shape.tokens(), tile_token = token_tile * tile_tokens;
  const uint32_t group_threads = 32 * group_warps, group_thread = in_group * 32 + lane;

  // ---- Fetching: a group's threads, a piece of 16 bytes each, 8 of them a line. A piece that is not there is filled
  // with zeros.
  constexpr int kLowLines = low_stage_lines(kBits, kRows * kRowWarps);
  const int high_lines = high_stage_lines(kRowWarps, tile_tokens, kGroups), stages = plan.stages, units = plan.units;
  const uint32_t line = group_thread / 8, at_once = group_threads / 8, in_line = group_thread % 8;
  const uint32_t low = kTableAddress + (table_lines(kBits) + k_warp * kLowLines) * kLine;  // stage 0
  const uint32_t high = kTableAddress + k_warp * high_lines * kLine + kHalf;
  const uint32_t low_step = shape.k_warps * kLowLines * kLine, high_step = shape.k_warps * high_lines * kLine;
  uint32_t low_now = low, high_now = high;  // the stage that is multiplied
  int stage = 0, fetch_unit = k_warp;
  const auto piece = [](const uint8_t* base, uint32_t at) { return base + static_cast<uint64_t>(at) * 16; };
  // Activations: 16-byte pieces swizzled by token, so that ldmatrix meets no bank conflict.
  constexpr int kXPieces = kTokens / 4 / kRowWarps;  // of a thread
  const uint32_t x_to = line * kLine + (in_line ^ line % 8) * 16, to_below = at_once * kLine;
  const uint32_t codes_to = line * kLine + in_line * 16;
  const int x_units = static_cast<int>((args.k + kUnitK - 1 - in_line * 8) / kUnitK);  // 8 k of them not beyond K
  const int x_tokens = args.m - tile_token - static_cast<int>(line);                   // from this thread's first on
  const int x_there = max(x_tokens + static_cast<int>(at_once) - 1, 0) / static_cast<int>(at_once);  // pieces
  const uint8_t* x_unit = args.x + ((tile_token + line) * args.ldx + k_warp * kUnitK + in_line * 8) * 2;
  const int64_t x_below = at_once * args.ldx * 2;
  const uint8_t* x_from = x_unit;  // the next piece
  // Codes of the tile's row groups: contiguous.
  constexpr uint32_t kCodePieces = kLowLines * 8;
  const uint32_t code_pieces = tile_rows * (unit_bytes(kBits) / 16);  // that are there
  const uint32_t unit_pieces = plan.row_groups * (unit_bytes(kBits) / 16);
  uint32_t codes_from = tile_row * (unit_bytes(kBits) / 16) + group_thread + fetch_unit * unit_pieces;
  // Scales.
  constexpr uint32_t kWarpScales = kRows * (kScaleBytes / 16), kGroupScales = kRowWarps * kWarpScales;  // pieces
  const uint32_t scale_group = group_thread / kGroupScales, scale_piece = group_thread % kGroupScales;
  const bool scales_there = scale_piece < tile_rows * (kScaleBytes / 16u);
  const uint32_t scales_of = tile_row * (kScaleBytes / 16) + scale_piece;
  const uint32_t scales_to = (tile_tokens + group_thread / kWarpScales) * kLine + group_thread % kWarpScales * 16;
  // A quarter of a stage, that of fetch_unit: all four by turns.
  const auto fetch = [&](uint32_t to_low, uint32_t to_high, int quarter) {
#pragma unroll
    for (int i = 0; i < kXPieces / 4; ++i) {
      const int number = quarter * (kXPieces / 4) + i;
      ptx::copy_16(to_high + x_to + number * to_below, x_from, number < x_there && fetch_unit < x_units ? 16 : 0);
      x_from += x_below;
    }
    const uint32_t code_piece = group_thread + quarter * group_threads;
    if (quarter < kBits && code_piece < kCodePieces) {
      ptx::copy_16(to_low + codes_to + quarter * to_below, piece(args.codes, codes_from + quarter * group_threads),
                   code_piece < code_pieces && fetch_unit < units ? 16 : 0);
    }
    if (quarter == 3) {
      if (group_thread < kGroups * kGroupScales) {
        const uint32_t group = kGroups == 2 ? 2 * fetch_unit + scale_group : fetch_unit >> plan.group_shift;
        ptx::copy_16(to_high + scales_to, piece(args.scales, scales_of + group * plan.row_groups * (kScaleBytes / 16)),
                     scales_there && fetch_unit < units ? 16 : 0);
      }
      ptx::copy_commit();
      fetch_unit += shape.k_warps, codes_from += shape.k_warps * unit_pieces;
      x_unit += shape.k_warps * (kUnitK * 2), x_from = x_unit;
    }
  };

  if (args.dependent_launch) ptx::wait_for_previous_kernel();
#pragma unroll 1
  for (int i = 0; i < stages; ++i) {
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) fetch(low + i * low_step, high + i * high_step, quarter);
  }
  Table<kBits> table;  // built while the first stages are on their way
  table.build(value, plan.table_rounds, warp, shape.warps(), static_cast<int>(lane));

  // ---- Fragments.
  float4 sums[kRows][kTiles];
#pragma unroll
  for (int i = 0; i < kRows * kTiles; ++i) sums[i / kTiles][i % kTiles] = make_float4(0, 0, 0, 0);
  uint32_t words[kRows][kBits], scales[kRows][kGroups], a[kRows][4] = {};
  uint4 b[2][kPairs];  // operand B of 16 tokens each, of this 16 k and the next
  const uint32_t x_row = (token_warp * kTokens + lane / 16 * 8 + lane % 8) * kLine + ((lane / 8 % 2) ^ lane % 8) * 16;
  const uint32_t codes_at = row_warp * kRows * kBits * kLine +
                            (kBits == 4 ? lane / 8 * kLine + lane % 8 * 16 : lane / 16 * kLine + lane % 16 * 8);
  const uint32_t scales_at = (tile_tokens + row_warp) * kLine + lane / 4 * 4;
  const auto load_tokens = [&](int f, int pair) {
    b[f % 2][pair] = ptx::load_matrices(((high_now + x_row) ^ f % 4 * 32) + pair * 16 * kLine);
  };
  const auto load_words = [&] {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint32_t at = low_now + codes_at + r * kBits * kLine;
      if constexpr (kBits == 4) {
        const uint4 v = ptx::load_shared_4(at);
        words[r][0] = v.x, words[r][1] = v.y, words[r][2] = v.z, words[r][3] = v.w;
      } else {
        const uint2 v = ptx::load_shared_2<0>(at);
        words[r][0] = v.x, words[r][1] = v.y;
        if constexpr (kBits == 3) {
          words[r][2] = ptx::load_shared<2 * kLineBytes>(low_now + (row_warp * kRows + r) * kBits * kLine + lane * 4);
        }
      }
    }
  };
  const auto load_scales = [&] {
#pragma unroll
    for (int i = 0; i < kRows * kGroups; ++i) {
      const int r = i / kGroups, group = i % kGroups;
      scales[r][group] = ptx::load_shared<0>(high_now + scales_at + group * kRowWarps * kLine + r * kScaleBytes);
    }
  };
  const auto scale = [&](int r, int f) {
    const uint32_t s = scales[r][f % 4 * kGroups / 4];
    const uint32_t lower = __byte_perm(s, 0, 0x1010), upper = __byte_perm(s, 0, 0x3232);
    a[r][0] = scale_pair<T>(a[r][0], lower), a[r][2] = scale_pair<T>(a[r][2], lower);
    a[r][1] = scale_pair<T>(a[r][1], upper), a[r][3] = scale_pair<T>(a[r][3], upper);
  };
  // Until the group's next stage is there, and none of it needs the one before.
  const auto wait = [&] {
    if (stages == 2) {
      ptx::copy_wait<0>();
    } else {
      ptx::copy_wait<1>();
    }
    ptx::named_barrier(1 + k_warp, group_threads);
  };

  if (stages == 2) {
    ptx::copy_wait<1>();
  } else {
    ptx::copy_wait<2>();
  }
  __syncthreads();  // the first stage and the table are there
  load_words();
  load_scales();
#pragma unroll
  for (int i = 0; i < kPairs; ++i) load_tokens(0, i);
#pragma unroll
  for (int r = 0; r < kRows; ++r) table.decode(words[r], 0, a[r]);
#pragma unroll
  for (int r = 0; r + 1 < kRows; ++r) scale(r, 0);

#pragma unroll 1
  for (int unit = k_warp; unit < units; unit += shape.k_warps) {
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      const uint32_t low_free = low_now, high_free = high_now;
      if (f == 3) {
        wait();
        stage = stage + 1 == stages ? 0 : stage + 1;
        low_now = low + stage * low_step, high_now = high + stage * high_step;
        load_words();
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int i = 0; i < kPairs / kRows; ++i) load_tokens(f + 1, r * (kPairs / kRows) + i);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          ptx::mma_16x8x16<T>(sums[r][2 * i], a[r], b[f % 2][i].x, b[f % 2][i].y);
          ptx::mma_16x8x16<T>(sums[r][2 * i + 1], a[r], b[f % 2][i].z, b[f % 2][i].w);
        }
        // The fragment of the next 16 k in the place of this one. It is scaled when the next row group's
        // multiplications have been issued: by then the table has answered.
        table.decode(words[r], (f + 1) % 4, a[r]);
        if (r > 0) {
          scale(r - 1, f + 1);
        } else {
          scale(kRows - 1, f);
        }
        if (f == 3) {
          if (r == 0) load_scales();
#pragma unroll
          for (int i = 0; i < 4 / kRows; ++i) fetch(low_free, high_free, r * (4 / kRows) + i);
        }
      }
    }
  }
  ptx::copy_wait<0>();

  // ---- The end: the groups' sums meet, half of the groups giving theirs to the other half.
  const uint32_t mine = kTableAddress + lane * 16;
#pragma unroll 1
  for (int half = shape.k_warps / 2; half > 0; half /= 2) {
    const uint32_t at = mine + ((k_warp % half) * group_warps + in_group) * (2 * kMmaEndBytes);
    __syncthreads();
    if (k_warp >= half && k_warp < 2 * half) {
#pragma unroll
      for (int i = 0; i < kRows * kTiles; ++i) ptx::store_shared_floats(at + i * 512, sums[i / kTiles][i % kTiles]);
    }
    __syncthreads();
    if (k_warp < half) {
#pragma unroll
      for (int i = 0; i < kRows * kTiles; ++i) {
        float4& sum = sums[i / kTiles][i % kTiles];
        sum = sum_of(sum, ptx::load_shared_floats(at + i * 512));
      }
    }
  }
  __syncthreads();
  if (k_warp > 0) return;
  // Results from fragments to rows of y: a line for each token, 16-byte pieces swizzled so that nothing meets a bank
  // conflict.
  constexpr uint32_t kPieces = kRows == 2 ? 4 : 8;  // 8 rows each
  const uint32_t results = kTableAddress + in_group * kMmaEndBytes;
  const auto result = [&](uint32_t token, uint32_t number) {
    return results + (token * kPieces + (number ^ token * kPieces / 8 % kPieces)) * 16;
  };
  const int first_row = (tile_row + row_warp * kRows) * kGroupRows;
  const int end_row = min((tile_row + tile_rows) * kGroupRows, args.n);  // beyond are another tile's, or none
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const auto bias = [&](int n) {
      return args.bias != nullptr && n < end_row ? to_float<T>(static_cast<const uint16_t*>(args.bias)[n]) : 0;
    };
    const int n = first_row + r * kGroupRows + static_cast<int>(lane / 4);
    const float lower = bias(n), upper = bias(n + 8);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const float4 v = sums[r][i];
      const uint32_t token = i * 8 + lane / 4;
      const uint32_t first = ptx::transpose_matrix(pair_of<T>(v.x + lower, v.y + lower));
      const uint32_t second = ptx::transpose_matrix(pair_of<T>(v.z + upper, v.w + upper));
      ptx::store_shared(result(token, 2 * r) + lane % 4 * 4, first);
      ptx::store_shared(result(token, 2 * r + 1) + lane % 4 * 4, second);
    }
  }
  __syncwarp();
#pragma unroll 1
  for (uint32_t i = lane / kPieces; i < kTokens; i += 32 / kPieces) {
    const uint32_t from = result(i, lane % kPieces);
    const int token = tile_token + token_warp * kTokens + static_cast<int>(i);
    const int n = first_row + static_cast<int>(lane % kPieces) * 8;
    T* const to = static_cast<T*>(args.y) + token * args.ldy + n;
    if (token >= args.m) break;
    if (n + 8 <= end_row && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
      *reinterpret_cast<uint4*>(to) = ptx::load_shared_4(from);
    } else {
#pragma unroll 1
      for (int j = 0; j < 8 && n + j < end_row; ++j) {
        reinterpret_cast<uint16_t*>(to)[j] = ptx::load_shared_short(from + 2 * j);
      }
    }
  }
}

}  // namespace flute::cuda
