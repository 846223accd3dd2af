// Y[M, N] = X[M, K] * W[N, K]^T for few tokens, W in 2-, 3- or 4-bit codes of any table: bound by reading W.
//
// How a weight travels. Each warp has a ring of stages in shared memory that it alone fills (cp.async, counted in
// groups) and reads: no warp waits for another until their sums meet. A stage is one step: codes and scales of up to
// kRows row groups and kDepth units of k, and the activations. A lane reads its own codes with one load; a byte of
// codes indexes a table of pairs that shared memory holds once per bank (lookup.cuh), and the pairs are operand A of
// mma.m16n8k16 as they come. Tokens are operand B. Warps share out K, blocks share out rows.
#pragma once

#include "cuda/decode/arguments.hpp"
#include "cuda/decode/lookup.cuh"

namespace flute::cuda {

// kTilesM: tiles of 8 tokens. Up to 2 the scale multiplies the accumulators, one FMA per accumulator and unit; from 4
// on it multiplies the weights. kRows: row groups of a pass. kDepth: units of a step, of which all are there: it
// divides the units of K. kGroups: scale groups in a unit.
template <typename T, int kBits, int kTilesM, int kRows, int kDepth, int kGroups, int kPermutes>
__global__ void __launch_bounds__(32 * max_warps(kTilesM), 1)
    decode_kernel(const __grid_constant__ DecodeArguments args) {
  constexpr bool kScaleSums = kTilesM <= 2;
  const DecodePlan& plan = args.plan;
  extern __shared__ __align__(1024) uint8_t shared_memory[];
  if (ptx::shared_address(shared_memory) != kTableAddress) __trap();
  const uint32_t thread = threadIdx.x, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int warp = __shfl_sync(~0u, thread / 32, 0);  // known to be the same for all lanes
  // A value to be held in a register. Left alone, the compiler computes such values again from the arguments wherever
  // they are used, which made the main loop a fifth longer; what comes out of a shuffle it cannot compute again.
  const auto keep = [&](auto value) { return __shfl_sync(~0u, value, lane); };
  const int warps = plan.warps, units = keep(plan.units), tokens = keep(args.m);

  if (args.dependent_launch) ptx::let_next_kernel_start();

  const int rows_begin = share_begin(plan.rows_each, plan.rows_longer, blockIdx.x);
  const int rows_end = share_begin(plan.rows_each, plan.rows_longer, blockIdx.x + 1);
  // A pass: `count` row groups from `row` on, never across a segment boundary.
  const auto segment_of = [&](int row) {
    int s = 0;
    if (args.segments > 1) {
      while (s + 1 < args.segments && args.segment_row[s + 1] <= row * kGroupRows) ++s;
    }
    return s;
  };
  const auto pass_count = [&](int row) {
    const int count = min(rows_end - row, kRows);
    if (args.segments == 1) return count;
    const int segment_end = (args.segment_row[segment_of(row) + 1] + kGroupRows - 1) / kGroupRows;
    return min(count, segment_end - row);
  };
  int segment = segment_of(rows_begin);
  const auto codebook_value = [&]() -> uint32_t {
    return static_cast<const uint16_t*>(args.codebooks)[(segment << kBits) + lane % (1 << kBits)];
  };
  uint32_t value = codebook_value();

  // ---- Fetching. This warp's steps of a pass begin at units kDepth * (warp, warp + warps, ...).
  constexpr int kUnitBytes = unit_bytes(kBits), kRowBytes = kDepth * kUnitBytes, kScalesAt = kRows * kRowBytes;
  constexpr int kRowPieces = kRowBytes / 16;                                // of 16 bytes, one a lane
  constexpr int kCopyRows = kRowPieces == 16 ? 2 : 1;                       // row groups of one copy
  constexpr int kRowCopies = kRowPieces == 64 || kRowPieces == 48 ? 2 : 1;  // copies of one row group
  constexpr int kLanes = kRowPieces / kRowCopies * kCopyRows;               // that take part: 32 or 24
  const uint32_t first_stage = kTableAddress + plan.ring_at + warp * (2 * plan.stage_bytes);
  const uint32_t both_stages = keep(2 * (first_stage + lane * 16) + plan.stage_bytes);  // the other one: minus this one
  const int step_units = keep(warps * kDepth), end_unit = keep(units + warp * kDepth);
  const int group_shift = keep(plan.group_shift);
  const uint32_t row_units = keep(static_cast<uint32_t>(units * kCopyRows));
  const int code_row = keep(static_cast<int>(lane * kCopyRows / 32));
  // Scales: lane -> (row group, unit of the step, its group, half of 32 bytes).
  constexpr int kScaleLanes = kRows * kDepth * kGroups * 2;
  static_assert(kScaleLanes <= 32);
  const int scale_row = keep(static_cast<int>(lane / (2 * kGroups * kDepth)));
  const int scale_unit = static_cast<int>(lane / (2 * kGroups) % kDepth);
  // Activations: [unit][token][64 k], 128 bytes a token, 16-byte pieces swizzled by token: ldmatrix meets no bank
  // conflict.
  const int x_token = keep(static_cast<int>(lane / 8)), x_unit_bytes = tokens * (kUnitK * 2);
  const int x_units =
      keep(static_cast<int>((args.k + kUnitK - 1 - lane % 8 * 8) / kUnitK));  // 8 k of them are not beyond K
  const uint32_t x_to = keep(plan.x_in_stage + lane / 8 * 128 + ((lane % 8) ^ (lane / 8)) * 16 - lane * 16);
  const auto x_lane = reinterpret_cast<const uint8_t*>(
      keep(reinterpret_cast<unsigned long long>(args.x + (lane / 8 * args.ldx + lane % 8 * 8) * 2)));
  const int64_t x_step = 8 * args.ldx;  // bytes to the token four further

  int fetch_row = rows_begin, fetch_count = pass_count(rows_begin), fetch_unit = warp * kDepth;
  uint32_t fetch_to = first_stage + lane * 16;
  const uint8_t* fetch_codes = args.codes +
                               static_cast<size_t>((rows_begin + code_row) * units + fetch_unit) * kUnitBytes +
                               (kCopyRows == 2 ? lane % 16 : lane) * 16;
  const uint8_t* fetch_scales = args.scales +
                                static_cast<size_t>((rows_begin + scale_row) * plan.groups) * kScaleBytes +
                                lane % (2 * kGroups) * 16;
  const auto fetch_weights = [&] {
    if (fetch_row < rows_end && fetch_unit < units) {

#pragma unroll
      for (int r = 0; r < kRows; r += kCopyRows) {
        if (r + (kCopyRows == 2 ? code_row : 0) < fetch_count) {
          const uint8_t* const from =
              fetch_codes + static_cast<uint64_t>(row_units) * static_cast<uint32_t>(r / kCopyRows * kUnitBytes);
#pragma unroll
          for (int i = 0; i < kRowCopies; ++i) {
            if (kLanes == 32 || lane < kLanes) {
              ptx::copy_16(fetch_to + r * kRowBytes + i * (kLanes * 16), from + i * (kLanes * 16));
            }
          }
        }
      }
      if (scale_row < fetch_count) {
        const int unit = fetch_unit + scale_unit;
        const uint32_t group = kGroups == 2 ? 2 * unit : unit >> group_shift;
        ptx::copy_16(fetch_to + kScalesAt, fetch_scales + static_cast<uint64_t>(group) * kScaleBytes);
      }
    }
  };
  const auto fetch_tokens = [&] {
    if (fetch_row < rows_end && fetch_unit < units) {
      const uint8_t* from = x_lane + static_cast<uint64_t>(static_cast<uint32_t>(fetch_unit)) * (kUnitK * 2);
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const uint32_t to = fetch_to + x_to + d * x_unit_bytes, valid = fetch_unit + d < x_units ? 16 : 0;
#pragma unroll
        for (int i = 0; i < 2 * kTilesM; ++i) {
          if (x_token + 4 * i < tokens) {
            ptx::copy_16((to + i * 512) ^ (i % 2 * 64), from + d * (kUnitK * 2) + i * x_step, valid);
          }
        }
      }
    }
  };
  const auto advance = [&] {
    ptx::copy_commit();
    fetch_to = both_stages - fetch_to;
    fetch_unit += step_units, fetch_codes += step_units * kUnitBytes;
    if (fetch_unit >= end_unit) {  // the same for all warps: the next pass
      fetch_codes += (static_cast<int64_t>(fetch_count) * units - (fetch_unit - warp * kDepth)) * kUnitBytes;
      fetch_scales += static_cast<size_t>(fetch_count * plan.groups) * kScaleBytes;
      fetch_unit = warp * kDepth;
      fetch_row += fetch_count;
      if (fetch_row < rows_end) fetch_count = pass_count(fetch_row);
    }
  };

  // Neither weights nor the table depend on the kernel before.
  fetch_weights();
  Table<kBits> table;
  table.build(value, plan.table_rounds, warp, warps, lane);
  if (args.dependent_launch) ptx::wait_for_previous_kernel();
  fetch_tokens();
  advance();
  fetch_weights();
  fetch_tokens();
  advance();

  // Where this lane's row of a tile of 8 tokens is in a stage, for ldmatrix; tokens that are not there repeat the last.
  uint32_t x_row[kTilesM];
#pragma unroll
  for (int i = 0; i < kTilesM; ++i) {
    const uint32_t token = min(8 * i + (kScaleSums ? lane % 8 : lane / 16 * 8 + lane % 8), tokens - 1u);
    x_row[i] = plan.x_in_stage - lane * 16 + token * 128 + ((kScaleSums ? lane / 8 : lane / 8 % 2) ^ (token & 7)) * 16;
  }

  __syncthreads();  // the table is there

  uint32_t stage = first_stage + lane * 16;  // where this lane's piece of it is
#pragma unroll 1
  for (int row = rows_begin; row < rows_end;) {
    const int count = pass_count(row);
    if (args.segments > 1 && segment_of(row) != segment) {
      segment = segment_of(row);
      table.build(codebook_value(), plan.table_rounds, warp, warps, lane);
      __syncthreads();  // and nobody read the old table any more after the barrier behind the last sums
    }
    float4 sums[kRows][kTilesM];
#pragma unroll
    for (int i = 0; i < kRows * kTilesM; ++i) sums[i / kTilesM][i % kTilesM] = make_float4(0, 0, 0, 0);

#pragma unroll 1
    for (int unit = warp * kDepth; unit < end_unit; unit += step_units) {
      ptx::copy_wait<1>();
      __syncwarp();  // every lane's copies are there
      const uint32_t stage_8 = stage - lane * 8, stage_4 = stage - lane * 12, stage_scales = stage - lane * 16 + g * 4;
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        if (unit < units) {
          const auto words_of = [&](int r, uint32_t(&words)[kBits]) {
            const uint32_t at = r * kRowBytes + d * kUnitBytes;
            if constexpr (kBits == 4) {
              const uint4 v = ptx::load_shared_4(stage + at);
              words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
            } else {
              const uint2 v = ptx::load_shared_2<0>(stage_8 + at);
              words[0] = v.x, words[1] = v.y;
              if constexpr (kBits == 3) words[2] = ptx::load_shared<256>(stage_4 + at);
            }
          };
          const auto scales_of = [&](int r, int group) {
            return ptx::load_shared<kScalesAt>(stage_scales + ((r * kDepth + d) * kGroups + group) * kScaleBytes);
          };
          if constexpr (kScaleSums) {
            uint4 b[2][kTilesM];
#pragma unroll
            for (int i = 0; i < kTilesM; ++i) {
              b[0][i] = ptx::load_matrices(stage + x_row[i] + d * x_unit_bytes);
              b[1][i] = ptx::load_matrices((stage + x_row[i] + d * x_unit_bytes) ^ 64);
            }
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
                  decode_fragment<kBits, kPermutes>(words[r], f, table, a);
#pragma unroll
                  for (int i = 0; i < kTilesM; ++i) {
                    const uint4 v = b[f / 2][i];
                    ptx::mma_16x8x16<T>(part[r][i], a, f % 2 == 0 ? v.x : v.z, f % 2 == 0 ? v.y : v.w);
                  }
                }
                if ((f + 1) % (4 / kGroups) == 0) {
#pragma unroll
                  for (int r = 0; r < kMany; ++r) {
                    const uint32_t s = scales_of(r0 + r, f * kGroups / 4);
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
#pragma unroll
            for (int r = 0; r < kRows; r += 2) {
              if (r + 1 < kRows && r + 1 < count) {
                compute.template operator()<2>(r);
              } else if (r < count) {
                compute.template operator()<1>(r);
              }
            }
          } else {
            // Operand B of fragment f: two tiles of tokens a load.
            const auto tokens_of = [&](int f, int i) {
              return ptx::load_matrices((stage + x_row[2 * i] + d * x_unit_bytes) ^ (f * 32));
            };
            const auto multiply = [&](const uint32_t(&words)[kBits], int f, uint32_t scales, int r,
                                      const uint4(&b)[kTilesM / 2]) {
              const uint32_t lower = __byte_perm(scales, 0, 0x1010), upper = __byte_perm(scales, 0, 0x3232);
              uint32_t a[4];
              decode_fragment<kBits, kPermutes>(words, f, table, a);
              a[0] = scale_pair<T>(a[0], lower), a[2] = scale_pair<T>(a[2], lower);
              a[1] = scale_pair<T>(a[1], upper), a[3] = scale_pair<T>(a[3], upper);
#pragma unroll
              for (int i = 0; i < kTilesM / 2; ++i) {
                ptx::mma_16x8x16<T>(sums[r][2 * i], a, b[i].x, b[i].y);
                ptx::mma_16x8x16<T>(sums[r][2 * i + 1], a, b[i].z, b[i].w);
              }
            };
            if constexpr (kTilesM == 4) {  // the unit's tokens fit into registers
              uint4 b[4][kTilesM / 2];
#pragma unroll
              for (int f = 0; f < 4; ++f) {
#pragma unroll
                for (int i = 0; i < kTilesM / 2; ++i) b[f][i] = tokens_of(f, i);
              }
#pragma unroll
              for (int r = 0; r < kRows; ++r) {
                if (r < count) {
                  uint32_t words[kBits];
                  words_of(r, words);
                  uint32_t scales[kGroups];
#pragma unroll
                  for (int i = 0; i < kGroups; ++i) scales[i] = scales_of(r, i);
#pragma unroll
                  for (int f = 0; f < 4; ++f) multiply(words, f, scales[f * kGroups / 4], r, b[f]);
                }
              }
            } else {
              uint32_t words[kRows][kBits], scales[kRows][kGroups];
#pragma unroll
              for (int r = 0; r < kRows; ++r) {
                if (r < count) {
                  words_of(r, words[r]);
#pragma unroll
                  for (int i = 0; i < kGroups; ++i) scales[r][i] = scales_of(r, i);
                }
              }
#pragma unroll
              for (int f = 0; f < 4; ++f) {
                uint4 b[kTilesM / 2];
#pragma unroll
                for (int i = 0; i < kTilesM / 2; ++i) b[i] = tokens_of(f, i);
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                  if (r < count) multiply(words[r], f, scales[r][f * kGroups / 4], r, b);
                }
              }
            }
          }
        }
      }
      __syncwarp();  // every lane has read the stage that is filled again now
      fetch_weights();
      fetch_tokens();
      advance();
      stage = both_stages - stage;
    }

    // ---- The warps' sums meet, in the order of the warps, a few tiles at a time. A tile is four lines (token pair q)
    // of 32 sums, swizzled so that neither side meets a bank conflict.
    constexpr int kTiles = kRows * kTilesM, kChunk = kTiles < kSumTiles ? kTiles : kSumTiles;
    uint8_t* const all = shared_memory + plan.sums_at;
#pragma unroll
    for (int first = 0; first < kTiles; first += kChunk) {
      if (first / kTilesM < count) {
        const uint32_t even = (t & 1) << 4, low = (t >> 1) << 3;
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          if (first + i < kTiles) {
            const int r = (first + i) / kTilesM;
            const int token = static_cast<int>((first + i) % kTilesM * 8 + 2 * t);
            const float4 v = sums[r][(first + i) % kTilesM];
            if (r < count && token < args.m) {
              float* const to = reinterpret_cast<float*>(all + ((warp * kChunk + i) * 4 + t) * plan.sum_pitch) + g;
              to[even ^ low] = v.x;
              to[even ^ 16 ^ low] = v.y;
              to[even ^ low ^ 8] = v.z;
              to[even ^ 16 ^ low ^ 8] = v.w;
            }
          }
        }
        __syncthreads();
#pragma unroll 1
        for (uint32_t e = thread; e < kChunk * 128; e += 32 * warps) {
          const uint32_t i = first + e / 128, r = i / kTilesM;
          const uint32_t token = i % kTilesM * 8 + e / 16 % 8, n = (row + r) * kGroupRows + e % 16;
          if (r < static_cast<uint32_t>(count) && token < static_cast<uint32_t>(args.m) &&
              n < static_cast<uint32_t>(args.n)) {
            const uint32_t q = e / 32 % 4, odd = e / 16 % 2;
            const uint8_t* from = all + (e / 128 * 4 + q) * plan.sum_pitch +
                                  (((odd ^ (q & 1)) << 4) + (((e / 8 % 2) ^ (q >> 1)) << 3) + e % 8) * 4;
            float sum = *reinterpret_cast<const float*>(from);
#pragma unroll 4
            for (int w = 1; w < warps; ++w) {
              sum += *reinterpret_cast<const float*>(from + w * (kChunk * 4) * plan.sum_pitch);
            }
            if (args.bias != nullptr) sum += static_cast<float>(static_cast<const T*>(args.bias)[n]);
            static_cast<T*>(args.y)[token * args.ldy + n] = from_float<T>(sum);
          }
        }
        __syncthreads();
      }
    }
    row += count;
  }
}

}  // namespace flute::cuda
