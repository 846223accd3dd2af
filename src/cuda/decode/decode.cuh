// Y[M, N] = X[M, K] * W[N, K]^T for few tokens, W in 2-, 3- or 4-bit codes of any table: bound by reading W.
//
// How a weight travels. Each warp has two stages in shared memory that it alone fills (cp.async, counted in groups) and
// reads: no warp waits for another until their sums meet. A stage is one step: codes and scales of kRows row groups and
// kDepth units of k, and the activations. A lane reads its own codes with one load; a byte of codes indexes a table of
// pairs that shared memory holds once per bank (lookup.cuh), and the pairs are operand A of mma.m16n8k16 as they come.
// Tokens are operand B. Blocks share out rows; in a block the warps share out its rows and K.
//
// What binds, where memory does not, is the number of instructions and the passes of shared memory. So the loop has no
// branch but its own (a warp with fewer row groups than kRows works on those behind and drops what comes of it),
// and a block has one end: its rows are all in work at once.
#pragma once

#include "cuda/decode/arguments.hpp"
#include "cuda/decode/lookup.cuh"

namespace flute::cuda {

// Blocks of a multiprocessor for which the kernel keeps to its registers. With two, the next multiply's block starts
// beside this one (programmatic dependent launch): worth it where a call is short, which it is with few row groups.
constexpr int min_blocks(int tiles_m, int rows, int depth) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  return 1;
#else
  return tiles_m == 1 && rows <= 2 && depth == 1 ? 2 : 1;
#endif
}

// kTilesM: tiles of 8 tokens. Up to 2 the scale multiplies the accumulators, one FMA per accumulator and unit; from 4
// on it multiplies the weights. kRows: row groups of a warp. kDepth: units of a step; it divides the units of K.
// kGroups: scale groups in a unit.
template <typename T, int kBits, int kTilesM, int kRows, int kDepth, int kGroups, int kPermutes>
__global__ void __launch_bounds__(32 * max_warps(kTilesM), min_blocks(kTilesM, kRows, kDepth))
    decode_kernel(const __grid_constant__ DecodeArguments args) {
  constexpr bool kScaleSums = kTilesM <= 2;
  const DecodePlan& plan = args.plan;
  extern __shared__ __align__(1024) uint8_t shared_memory[];
  const uint32_t shared_begin = ptx::shared_address(shared_memory);
  if (shared_begin > kTableAddress) __trap();
  if (args.dependent_launch) ptx::let_next_kernel_start();
  const uint32_t thread = threadIdx.x, lane = thread % 32;
  const int warp = __shfl_sync(~0u, thread / 32, 0);  // known to be the same for all lanes
  // A value to be held in a register. Left alone, the compiler computes such values again from the arguments wherever
  // they are used, which made the main loop a fifth longer; what comes out of a shuffle it cannot compute again.
  const auto keep = [&](auto value) { return __shfl_sync(~0u, value, lane); };

  // ---- This block's rows, of one segment, and this warp's of them.
  int segment = 0, block = blockIdx.x;
  if (plan.deal.segments > 1) {
#pragma unroll 1
    while (block >= plan.deal.share[segment].blocks) block -= plan.deal.share[segment++].blocks;
  }
  const RowShare& share = plan.deal.share[segment];
  // Asked for at once, and so that the compiler cannot move it behind the weights, where it would stand in line for 1
  // us.
  const uint32_t value =
      ptx::load_global_2(static_cast<const uint16_t*>(args.codebooks) + (segment << kBits) + lane % (1 << kBits));
  __syncwarp();
  const auto by_row_warps = [&](int a) { return a * plan.row_warps_inverse >> 8; };  // a / row_warps
  const int row_warps = plan.row_warps, k_warp = by_row_warps(warp), row_warp = warp - k_warp * row_warps;
  const int block_row = share.first + share_begin(share.each, share.longer, block);
  const int block_rows = share.each + (block < share.longer);
  const int each = by_row_warps(block_rows), longer = block_rows - each * row_warps;
  const int warp_begin = share_begin(each, longer, row_warp), warp_rows = each + (row_warp < longer);
  const int row = block_row + min(warp_begin, block_rows - 1);  // a warp may have none

  // ---- Fetching. This warp takes the steps k_warp, k_warp + k_warps, ... of K. Places in memory count pieces of 16
  // bytes, so that 32 bits do.
  // What a step reads for one unit of k is contiguous, codes and scales alike. Row groups that are not this warp's are
  // fetched and dropped.
  constexpr int kUnitBytes = unit_bytes(kBits), kRunBytes = kRows * kUnitBytes;
  constexpr uint32_t kRunPieces = kRunBytes / 16;
  constexpr int kScalesAt = kDepth * kRunBytes, kXAt = x_in_stage(kBits, kRows, kDepth, kGroups);
  constexpr int kScaleRunPieces = kRows * kScaleBytes / 16;        // of one scale group
  constexpr int kScaleLanes = kDepth * kGroups * kScaleRunPieces;  // (unit of the step, its group, piece)
  static_assert(kScaleLanes <= 32);
  const auto piece = [](const uint8_t* base, uint32_t at) { return base + static_cast<uint64_t>(at) * 16; };
  const uint32_t unit_pieces = plan.row_groups * (kUnitBytes / 16);  // from one unit of k to the next
  const int ring_bytes = 2 * plan.stage_bytes;
  uint32_t stage = kTableAddress + plan.ring_at + warp * ring_bytes + lane * 16;  // this lane's piece of it
  const uint32_t both_stages = keep(2 * stage + plan.stage_bytes);                // the other one: minus this
  const int units = plan.units, k_warps = plan.k_warps, step_units = k_warps * kDepth;
  int fetch_unit = k_warp * kDepth;
  uint32_t codes_of = fetch_unit * unit_pieces + row * (kUnitBytes / 16) + lane;  // this lane's piece of the next step
  const uint32_t step_pieces = step_units * unit_pieces;
  const uint32_t scale_run = lane / kScaleRunPieces;
  const uint32_t scale_pieces = plan.row_groups * (kScaleBytes / 16);  // from one scale group to the next
  const uint32_t scales_of =
      keep(row * (kScaleBytes / 16) + lane % kScaleRunPieces + scale_run % kGroups * scale_pieces);
  const auto fetch_weights = [&](uint32_t to) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const uint8_t* const from = piece(args.codes, codes_of + d * unit_pieces);
#pragma unroll
      for (uint32_t i = 0; i < kRunPieces; i += 32) {
        if (i + 32 <= kRunPieces || lane < kRunPieces - i) ptx::copy_16(to + d * kRunBytes + i * 16, from + i * 16);
      }
    }
    codes_of += step_pieces;
    if (kScaleLanes == 32 || lane < kScaleLanes) {
      const uint32_t unit = fetch_unit + (kDepth > 1 ? scale_run / kGroups : 0);
      const uint32_t group = kGroups == 2 ? 2 * unit : unit >> plan.group_shift;
      ptx::copy_16(to + kScalesAt, piece(args.scales, scales_of + group * scale_pieces));
    }
  };
  // Activations: [unit][token][64 k], 128 bytes a token, 16-byte pieces swizzled by token: ldmatrix meets no bank
  // conflict.
  const uint32_t x_to = kXAt + lane / 8 * 128 + ((lane % 8) ^ (lane / 8)) * 16 - lane * 16;
  const int x_units = static_cast<int>((args.k + kUnitK - 1 - lane % 8 * 8) / kUnitK);  // 8 k of them not beyond K
  const int x_token = static_cast<int>(lane / 8);
  const uint32_t x_of = keep(lane / 8 * static_cast<uint32_t>(args.ldx / 8) + lane % 8);  // this lane's piece of unit 0
  const uint32_t x_below = static_cast<uint32_t>(args.ldx / 2);                           // to the token four further
  const int x_unit_bytes = args.m * (kUnitK * 2);
  const auto fetch_tokens = [&](uint32_t to) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const uint32_t at = (fetch_unit + d) * (kUnitK / 8), valid = fetch_unit + d < x_units ? 16 : 0;
#pragma unroll
      for (int i = 0; i < 2 * kTilesM; ++i) {
        if (x_token + 4 * i < args.m) {
          ptx::copy_16((to + x_to + d * x_unit_bytes + i * 512) ^ (i % 2 * 64), piece(args.x, x_of + at + i * x_below),
                       valid);
        }
      }
    }
  };

  // Neither weights nor the table depend on the kernel before. Only the first step's weights are asked for before the
  // activations, which would stand in line behind more of them.
  fetch_weights(stage);
  Table<kBits> table;
  table.build(value, plan.table_rounds, warp, static_cast<int>(blockDim.x / 32), lane);
  // Where this lane's row of a tile of 8 tokens is in a stage, for ldmatrix: in the first tile, and how much further in
  // tile i. Tokens that are not there repeat one of the first tile.
  const uint32_t x_first = min(lane % 8, args.m - 1u);
  const uint32_t x_row = kXAt - lane * 16 + x_first * 128 + ((kScaleSums ? lane / 8 : lane / 8 % 2) ^ x_first) * 16;
  const auto x_tile = [&](int i) {
    const uint32_t tile = kScaleSums ? i : i + lane / 16;
    return 8 * tile + lane % 8 < static_cast<uint32_t>(args.m) ? tile * 1024 : 0;
  };
  const uint32_t scales_at = kScalesAt - lane * 16 + lane / 4 * 4;
  if (args.dependent_launch) ptx::wait_for_previous_kernel();
  fetch_tokens(stage);
  ptx::copy_commit();
  fetch_unit += step_units;
  if (fetch_unit < units) {
    fetch_weights(both_stages - stage);
    fetch_tokens(both_stages - stage);
  }
  ptx::copy_commit();
  fetch_unit += step_units;
  // What only the end needs waits in a gap of the table: the loop has no register to spare.
  const uint32_t for_the_end = kTableAddress + kTableStride / 2 + warp * kTableStride;
  if (lane == 0) ptx::store_shared_4(for_the_end, make_uint4(row, warp_rows, k_warp, row_warp));
  __syncthreads();  // the table is there

  float4 sums[kRows][kTilesM];
#pragma unroll
  for (int i = 0; i < kRows * kTilesM; ++i) sums[i / kTilesM][i % kTilesM] = make_float4(0, 0, 0, 0);

#pragma unroll 1
  for (; fetch_unit < units + 2 * step_units; fetch_unit += step_units) {  // it is two steps ahead
    ptx::copy_wait<1>();
    __syncwarp();  // every lane's copies are there
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const auto words_of = [&](int r, uint32_t(&words)[kBits]) {
        const uint32_t at = d * kRunBytes + r * kUnitBytes;
        if constexpr (kBits == 4) {
          const uint4 v = ptx::load_shared_4(stage + at);
          words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
        } else {
          const uint2 v = ptx::load_shared_2<0>(stage - lane * 8 + at);
          words[0] = v.x, words[1] = v.y;
          if constexpr (kBits == 3) words[2] = ptx::load_shared<256>(stage - lane * 12 + at);
        }
      };
      const auto scales_in = [&](int r, int group) {
        return ptx::load_shared<0>(stage + scales_at + ((d * kGroups + group) * kRows + r) * kScaleBytes);
      };
      const auto x_matrices = [&](int i, uint32_t flip) {
        return ptx::load_matrices((stage + x_row + x_tile(i) + d * x_unit_bytes) ^ flip);
      };
      if constexpr (kScaleSums) {
        uint4 b[2][kTilesM];
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) b[0][i] = x_matrices(i, 0), b[1][i] = x_matrices(i, 64);
        // kMany row groups side by side: their chains of tensor-core instructions hide each other's latency.
        const auto compute = [&]<int kMany>(int r0) {
          uint32_t words[kMany][kBits];
          float4 part[kMany][kTilesM];
#pragma unroll
          for (int r = 0; r < kMany; ++r) words_of(r0 + r, words[r]);
#pragma unroll
          for (int f = 0; f < 4; ++f) {
#pragma unroll
            for (int r = 0; r < kMany; ++r) {
              if (f % (4 / kGroups) == 0) {
#pragma unroll
                for (int i = 0; i < kTilesM; ++i) part[r][i] = make_float4(0, 0, 0, 0);
              }
              uint32_t a[4];
              table.decode(words[r], f, a);
#pragma unroll
              for (int i = 0; i < kTilesM; ++i) {
                const uint4 v = b[f / 2][i];
                ptx::mma_16x8x16<T>(part[r][i], a, f % 2 == 0 ? v.x : v.z, f % 2 == 0 ? v.y : v.w);
              }
            }
            if ((f + 1) % (4 / kGroups) == 0) {
#pragma unroll
              for (int r = 0; r < kMany; ++r) {
                const uint32_t s = scales_in(r0 + r, f * kGroups / 4);
                const float lower = to_float<T>(s & 0xffff), upper = to_float<T>(s >> 16);
#pragma unroll
                for (int i = 0; i < kTilesM; ++i) {
                  float4& sum = sums[r0 + r][i];
                  sum.x += lower * part[r][i].x, sum.y += lower * part[r][i].y;
                  sum.z += upper * part[r][i].z, sum.w += upper * part[r][i].w;
                }
              }
            }
          }
        };
        constexpr int kSideBySide = 2;
#pragma unroll
        for (int r = 0; r < kRows; r += kSideBySide) {
          if (r + kSideBySide <= kRows) {
            compute.template operator()<kSideBySide>(r);
          } else {
            compute.template operator()<1>(r);
          }
        }
      } else {
        // Operand B of fragment f: two tiles of tokens a load. With 4 tiles they stay in registers for all row groups;
        // with 8 they do not fit, and codes and scales stay instead.
        constexpr bool kHoldTokens = kTilesM == 4;
        uint4 b[kHoldTokens ? 4 : 1][kTilesM / 2];
        const auto load_tokens = [&](int f, uint4(&to)[kTilesM / 2]) {
#pragma unroll
          for (int i = 0; i < kTilesM / 2; ++i) to[i] = x_matrices(2 * i, f * 32);
        };
        const auto load_weights = [&](int r, uint32_t(&words)[kBits], uint32_t(&scales)[kGroups]) {
          words_of(r, words);
#pragma unroll
          for (int i = 0; i < kGroups; ++i) scales[i] = scales_in(r, i);
        };
        const auto multiply = [&](const uint32_t(&words)[kBits], uint32_t s, int f, int r,
                                  const uint4(&tokens)[kTilesM / 2]) {
          const uint32_t lower = __byte_perm(s, 0, 0x1010), upper = __byte_perm(s, 0, 0x3232);
          uint32_t a[4];
          table.decode(words, f, a);
          a[0] = scale_pair<T>(a[0], lower), a[2] = scale_pair<T>(a[2], lower);
          a[1] = scale_pair<T>(a[1], upper), a[3] = scale_pair<T>(a[3], upper);
#pragma unroll
          for (int i = 0; i < kTilesM / 2; ++i) {
            ptx::mma_16x8x16<T>(sums[r][2 * i], a, tokens[i].x, tokens[i].y);
            ptx::mma_16x8x16<T>(sums[r][2 * i + 1], a, tokens[i].z, tokens[i].w);
          }
        };
        if constexpr (kHoldTokens) {
#pragma unroll
          for (int f = 0; f < 4; ++f) load_tokens(f, b[f]);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            uint32_t words[kBits], scales[kGroups];
            load_weights(r, words, scales);
#pragma unroll
            for (int f = 0; f < 4; ++f) multiply(words, scales[f * kGroups / 4], f, r, b[f]);
          }
        } else {
          uint32_t words[kRows][kBits], scales[kRows][kGroups];
#pragma unroll
          for (int r = 0; r < kRows; ++r) load_weights(r, words[r], scales[r]);
#pragma unroll
          for (int f = 0; f < 4; ++f) {
            load_tokens(f, b[0]);
#pragma unroll
            for (int r = 0; r < kRows; ++r) multiply(words[r], scales[r][f * kGroups / 4], f, r, b[0]);
          }
        }
      }
    }
    __syncwarp();  // every lane has read the stage that is filled again now
    if (fetch_unit < units) {
      fetch_weights(stage);
      fetch_tokens(stage);
    }
    ptx::copy_commit();
    stage = both_stages - stage;
  }

  // ---- The sums of the warps along K meet, in their order. Each warp leaves its own where its stages were, in lines:
  // 32 sums, a pair of tokens x 16 rows, swizzled so that neither side meets a bank conflict. 2^pairs_shift lines of a
  // tile hold tokens that are there.
  constexpr int kTiles = kRows * kTilesM;
  const uint4 end =
      ptx::load_shared_4(kTableAddress + kTableStride / 2 + __shfl_sync(~0u, threadIdx.x / 32, 0) * kTableStride);
  const int end_row = static_cast<int>(end.x), end_rows = static_cast<int>(end.y);
  const int end_k_warp = static_cast<int>(end.z), end_row_warp = static_cast<int>(end.w);
  const int pairs_shift = plan.sum_pairs_shift;
  uint8_t* const rings = shared_memory + (kTableAddress - shared_begin) + plan.ring_at;
  {
    const uint32_t t = lane % 4, even = (t & 1) << 4, low = (t >> 1) << 3;
    if (t < 1u << pairs_shift) {
      uint8_t* const mine = rings + (end_k_warp * plan.row_warps + end_row_warp) * ring_bytes + t * 128 + lane / 4 * 4;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const float4 v = sums[i / kTilesM][i % kTilesM];
        float* const to = reinterpret_cast<float*>(mine + (i * 128 << pairs_shift));
        to[even ^ low] = v.x;
        to[even ^ 16 ^ low] = v.y;
        to[even ^ low ^ 8] = v.z;
        to[even ^ 16 ^ low ^ 8] = v.w;
      }
    }
  }
  __syncthreads();
  const int lines = end_rows * kTilesM << pairs_shift;
#pragma unroll 1
  for (int line = end_k_warp; line < lines; line += plan.k_warps) {
    const int tile = line >> pairs_shift, q = line & ((1 << pairs_shift) - 1), r = tile / kTilesM;
    const int token = tile % kTilesM * 8 + q * 2 + (lane >> 4);
    const int n = (end_row + r) * kGroupRows + static_cast<int>(lane % 16);
    const uint8_t* from = rings + end_row_warp * ring_bytes + line * 128 +
                          ((((lane >> 4) ^ (q & 1)) << 4) + (((lane >> 3 & 1) ^ (q >> 1)) << 3) + lane % 8) * 4;
    float part[max_warps(kTilesM)];
#pragma unroll
    for (int w = 0; w < max_warps(kTilesM); ++w) {
      if (w < plan.k_warps) part[w] = *reinterpret_cast<const float*>(from + w * (ring_bytes * plan.row_warps));
    }
    float sum = part[0];
#pragma unroll
    for (int w = 1; w < max_warps(kTilesM); ++w) {
      if (w < plan.k_warps) sum += part[w];
    }
    if (token < args.m && n < args.n) {
      if (args.bias != nullptr) sum += static_cast<float>(static_cast<const T*>(args.bias)[n]);
      static_cast<T*>(args.y)[token * args.ldy + n] = from_float<T>(sum);
    }
  }
}

}  // namespace flute::cuda
