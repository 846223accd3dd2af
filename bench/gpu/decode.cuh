// Y[M, N] = X[M, K] * W[N, K]^T for few tokens, W in 2-, 3- or 4-bit codes of any table: the sm_90a decode kernel.
//
// How a weight travels. Each warp owns a ring of stages in shared memory and fills it by bulk copies (one instruction
// of one lane for a 64 x 64 block), so memory stays busy whatever the warp is doing, and no thread or register waits
// for a load. A block is read with 16-byte loads, a byte of codes indexes a table of pairs that shared memory holds
// once per bank, and the pairs are A fragments of mma.m16n8k16 as they come. Tokens are operand B, from shared memory,
// loaded once per thread block. Warps split K; their sums meet in shared memory, those of the cluster in the shared
// memory of whoever owns the rows.
#pragma once

#include "decode_arguments.hpp"
#include "ptx.cuh"

namespace flute::cuda {

namespace detail {

template <typename T>
__device__ inline float to_float(uint32_t bits);
template <>
__device__ inline float to_float<__half>(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
template <>
__device__ inline float to_float<__nv_bfloat16>(uint32_t bits) {
  return __uint_as_float(bits << 16);
}

template <typename T>
__device__ inline T from_float(float value);
template <>
__device__ inline __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// pair * (s, s), rounded to T: the value every backend computes with.
__device__ inline uint32_t scale_pair(uint32_t pair, __half2 s) {
  const __half2 v = __hmul2_rn(*reinterpret_cast<const __half2*>(&pair), s);
  return *reinterpret_cast<const uint32_t*>(&v);
}
__device__ inline uint32_t scale_pair(uint32_t pair, __nv_bfloat162 s) {
  const __nv_bfloat162 v = __hmul2_rn(*reinterpret_cast<const __nv_bfloat162*>(&pair), s);
  return *reinterpret_cast<const uint32_t*>(&v);
}

template <typename T>
struct Pair;
template <>
struct Pair<__half> {
  using type = __half2;
};
template <>
struct Pair<__nv_bfloat16> {
  using type = __nv_bfloat162;
};

// The table in shared memory: entry e at e * table_stride, a copy for each bank, so that a lane only ever reads its own
// bank(s) and no conflict is possible. 4 and 3 bits: a pair, 32 copies of 4 bytes. 2 bits: two pairs, 16 copies of 8
// bytes.
template <int kBits>
struct Table {
  uint32_t lane_base;  // table + this lane's copy
  uint32_t low, high;  // 2 bits: low and high bytes of the four values, for byte permutes

  template <int kWarps>
  __device__ void build(uint32_t table, const void* codebook, int warp, int lane) {
    constexpr int kCodes = 1 << kBits;
    const uint32_t value = lane < kCodes ? static_cast<const uint16_t*>(codebook)[lane] : 0;
    const auto at = [&](uint32_t code) { return __shfl_sync(~0u, value, static_cast<int>(code)); };
    constexpr int kEntries = kBits == 3 ? 64 : 256;
#pragma unroll
    for (int i = 0; i < kEntries / kWarps / 4; ++i) {  // a warp writes four entries of 128 bytes at a time
      const uint32_t e = warp * (kEntries / kWarps) + i * 4 + lane / 8;
      uint4 piece;
      if constexpr (kBits == 2) {
        piece.x = at(e & 3) | at(e >> 4 & 3) << 16;
        piece.y = at(e >> 2 & 3) | at(e >> 6) << 16;
        piece.z = piece.x, piece.w = piece.y;
      } else {
        piece.x = at(e & (kCodes - 1)) | at(e >> kBits) << 16;
        piece.y = piece.z = piece.w = piece.x;
      }
      ptx::store_shared_4(table + e * table_stride(kBits) + lane % 8 * 16, piece);
    }
    lane_base = table + (kBits == 2 ? lane % 16 * 8 : lane * 4);
    if constexpr (kBits == 2) {
      low = high = 0;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        low |= (at(c) & 0xff) << (8 * c);
        high |= at(c) >> 8 << (8 * c);
      }
    }
  }

  // 2 and 3 bits: the address of the entry of byte `kByte` of w: that byte becomes bits 8..15, the rest is lane_base.
  template <int kByte>
  __device__ uint32_t entry(uint32_t w) const {
    return __byte_perm(w, lane_base, 0x7604 | kByte << 4);
  }
};

// Decodes a lane's words of a unit into its four A fragments.
// kPermutes (2 bits only): how many of the four half words are decoded by byte permutes instead of lookups, an
// experiment: it takes work from shared memory and gives more to the integer pipe. Lookups alone (0) measured best.
template <int kBits, int kPermutes>
__device__ inline void decode_unit(const uint32_t* words, const Table<kBits>& table, uint32_t (&a)[4][4]) {
  if constexpr (kBits == 4) {
    const auto pair = [&](uint32_t shifted) { return ptx::load_shared((shifted & 0x7f80) | table.lane_base); };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t w = words[i];
      a[i][0] = pair(w);
      a[i][1] = pair(w >> 8);
      a[i][2] = pair(w >> 16);
      a[i][3] = pair(__funnelshift_l(w, w, 8));
    }
  } else if constexpr (kBits == 3) {
    constexpr uint32_t kBase = (table_address(3) >> 8) * 0x01010101u;
    uint32_t bytes[4];
#pragma unroll
    for (int i = 0; i < 3; ++i) bytes[i] = (words[i] & 0x3f3f3f3f) | kBase;
    bytes[3] = (words[0] >> 6 & 0x03030303) | kBase;
    bytes[3] = (words[1] >> 4 & 0x0c0c0c0c) | bytes[3];
    bytes[3] = (words[2] >> 2 & 0x30303030) | bytes[3];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i][0] = ptx::load_shared(table.template entry<0>(bytes[i]));
      a[i][1] = ptx::load_shared(table.template entry<1>(bytes[i]));
      a[i][2] = ptx::load_shared(table.template entry<2>(bytes[i]));
      a[i][3] = ptx::load_shared(table.template entry<3>(bytes[i]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t w = words[i / 2];
      auto& f = a[i];
      if (i >= 4 - kPermutes) {
        const uint32_t s = i % 2 == 0 ? w : w >> 16;
        const uint32_t s0 = s & 0x3333, s1 = s >> 2 & 0x3333;
        const uint32_t l0 = __byte_perm(table.low, 0, s0), h0 = __byte_perm(table.high, 0, s0);
        const uint32_t l1 = __byte_perm(table.low, 0, s1), h1 = __byte_perm(table.high, 0, s1);
        f[0] = __byte_perm(l0, h0, 0x5140);
        f[2] = __byte_perm(l0, h0, 0x7362);
        f[1] = __byte_perm(l1, h1, 0x5140);
        f[3] = __byte_perm(l1, h1, 0x7362);
      } else {
        const uint2 first = ptx::load_shared_2(i % 2 == 0 ? table.template entry<0>(w) : table.template entry<2>(w));
        const uint2 second = ptx::load_shared_2(i % 2 == 0 ? table.template entry<1>(w) : table.template entry<3>(w));
        f[0] = first.x, f[1] = first.y, f[2] = second.x, f[3] = second.y;
      }
    }
  }
}

__device__ inline float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

}  // namespace detail

// Roles of the warps: kWarps compute, two fetch (one codes and scales, one activations, which wait for the kernel
// before), two add up and write. The first never wait for each other: stages
// pass from the fetching warps to them, sums from them to the adding warps, each way by mbarriers.
constexpr int kFetchingWarps = 2, kAddingWarps = 2;
constexpr int kOtherWarps = kFetchingWarps + kAddingWarps;

// kTilesM: tiles of 8 tokens, 1 or 2. The scale multiplies the accumulators: one FMA per accumulator and unit.
// kGroup32: two scale groups in a unit.
template <typename T, int kBits, int kTilesM, int kWarps, bool kGroup32, int kPermutes>
__global__ void __launch_bounds__(32 * (kWarps + kOtherWarps), kWarps == 8 && kTilesM == 1 ? 2 : 1)
    decode_kernel(const __grid_constant__ DecodeArguments args, const __grid_constant__ DecodeMaps maps) {
  using namespace detail;
  constexpr int kUnit = unit_bytes(kBits);
  constexpr int kStepBytes = kWarps * kUnit;  // codes of one row group in one stage
  constexpr int kMaxRows = max_pass_rows(kTilesM);
  const DecodePlan& plan = args.plan;

  extern __shared__ __align__(1024) uint8_t shared_memory[];
  const uint32_t base = ptx::shared_address(shared_memory);
  if ((base & 0xffffff) != kSharedStart) __trap();  // the plan placed the table by absolute address
  const uint32_t full = base, empty = base + kMaxStages * 8, exchange_barrier = base + 2 * kMaxStages * 8;
  const uint32_t sums_full = exchange_barrier + 16, sums_free = exchange_barrier + 24;
  const uint32_t ring = base + plan.ring_at;
  const auto sums_of = [&](int w) {  // where computing warp w puts its sums
    const int bytes = plan.pass_rows * (kTilesM * 512);
    return base + (w < plan.sums_low ? plan.sums_at + w * bytes : plan.sums_high_at + (w - plan.sums_low) * bytes);
  };

  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4;
  const int rank = plan.split > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;
  const int cluster = blockIdx.x >> plan.split_shift;
  const int rows_begin = share_begin(plan.rows_each, plan.rows_longer, cluster);
  const int rows_end = share_begin(plan.rows_each, plan.rows_longer, cluster + 1);
  const int unit_begin = share_begin(plan.slice_each, plan.slice_longer, rank) << plan.align_shift;
  const int unit_end = min(share_begin(plan.slice_each, plan.slice_longer, rank + 1) << plan.align_shift, plan.units);

  if (thread == 32 * kWarps) {
#pragma unroll 1
    for (int i = 0; i < plan.stages; ++i) {
      ptx::mbarrier_init(full + i * 8, 1);
      ptx::mbarrier_init(empty + i * 8, kWarps);
    }
    ptx::mbarrier_init(exchange_barrier, 1);
    ptx::mbarrier_init(exchange_barrier + 8, 1);
    ptx::mbarrier_init(sums_full, 32 * kWarps);
    ptx::mbarrier_init(sums_free, 32 * kAddingWarps);
    ptx::fence_mbarrier_init();
  }
  __syncwarp();
  if (plan.split > 1) ptx::cluster_arrive_relaxed();
  if (args.dependent_launch) ptx::let_next_kernel_start();

  // A pass: `count` row groups from `row` on, never across a segment boundary.
  const auto segment_of = [&](int row) {
    int s = 0;
    while (s + 1 < args.segments && args.segment_row[s + 1] <= row * kGroupRows) ++s;
    return s;
  };
  const auto pass_count = [&](int row) {
    const int count = pass_size(rows_end - row, plan.pass_rows);
    if (args.segments == 1) return count;
    const int segment_end = (args.segment_row[segment_of(row) + 1] + kGroupRows - 1) / kGroupRows;
    return min(count, segment_end - row);
  };

  // ------------------------------------------------------------------------------------------------------------------------
  // The warps that fetch, one lane of each. The first: codes and scales of a stage. The other: activations.
  struct Cursor {
    int row, count, unit;
  };
  const auto advance = [&](Cursor& c) {
    c.unit += kWarps;
    if (c.unit >= unit_end) {
      c.row += c.count, c.unit = unit_begin;
      if (c.row < rows_end) c.count = pass_count(c.row);
    }
  };
  const bool fetches = warp >= kWarps && warp < kWarps + kFetchingWarps, fetches_weights = warp == kWarps;
  const uint64_t policy = fetches_weights ? ptx::evict_first_policy() : ptx::evict_last_policy();
  const auto fetch_weights = [&](const Cursor& c, int stage) {
    const uint32_t barrier = full + stage * 8, to = ring + stage * plan.stage_bytes;
    const int first = args.group < 0 ? 0 : c.unit * kUnitK >> plan.group_shift;
    ptx::mbarrier_arrive_expect(barrier, c.count * (kStepBytes + plan.scale_pitch) + plan.x_bytes);
    ptx::copy_tensor(to, &maps.codes[c.count - 1], 0, c.unit, c.row, barrier, policy);
    ptx::copy_tensor(to + plan.scales_in_stage, &maps.scales[c.count - 1], first * (kScaleBytes / 4), c.row, barrier,
                     policy);
  };
  const auto fetch_tokens = [&](const Cursor& c, int stage) {
    ptx::copy_tensor(ring + stage * plan.stage_bytes + plan.x_in_stage, &maps.x, 0, 0, c.unit, full + stage * 8,
                     policy);
  };
  Cursor at = {rows_begin, pass_count(rows_begin), unit_begin};
  int fetch_stage = 0, fetch_parity = 1;
  // Some stages of weights before the dependency wait: they do not depend on the kernel before. Where this block
  // starts only when the one before it ends, no more than two: the first activations would queue behind them.
  if (fetches_weights) {
#pragma unroll 1
    for (; fetch_stage < plan.early_stages && at.row < rows_end; ++fetch_stage) {
      if (lane == 0) fetch_weights(at, fetch_stage);
      advance(at);
    }
    if (fetch_stage == plan.stages) fetch_stage = 0, fetch_parity = 0;
  } else if (fetches && lane == 0) {
    ptx::prefetch_map(&maps.x);
  }

  int segment = segment_of(rows_begin);
  Table<kBits> table;
  const auto build_table = [&] {
    table.template build<kWarps>(base + plan.table_at,
                                 static_cast<const uint16_t*>(args.codebooks) + (segment << kBits), warp, lane);
  };
  if (warp < kWarps) build_table();
  if (thread < 8) ptx::store_shared_4(base + plan.zeros_at + thread * 16, make_uint4(0, 0, 0, 0));
  __syncthreads();  // the barriers are set up, the table and the zeros are written

  if (fetches) {
    if (args.dependent_launch) ptx::wait_for_previous_kernel();
    if (lane != 0) return;
#pragma unroll 1
    while (at.row < rows_end) {
      ptx::mbarrier_wait(empty + fetch_stage * 8, fetch_parity);  // parity 1 passes in the first round
      if (fetches_weights) {
        fetch_weights(at, fetch_stage);
      } else {
        fetch_tokens(at, fetch_stage);
      }
      advance(at);
      if (++fetch_stage == plan.stages) fetch_stage = 0, fetch_parity ^= 1;
    }
    return;
  }

  const auto get = [](uint32_t address) {
    const uint4 v = ptx::load_shared_4(address);
    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
  };

  // ------------------------------------------------------------------------------------------------------------------------
  // The warps that add: sums of all computing warps, in a fixed order; then those of the cluster, if there is one; then
  // Y. A piece is (row group, token tile, lane): four sums, 16 bytes.
  if (warp >= kWarps + kFetchingWarps) {
    constexpr int kAdders = 32 * kAddingWarps;
    const int adder = thread - 32 * (kWarps + kFetchingWarps);
    const auto finish = [&](float4 sum, int piece, int row_group) {
      const int r = piece / 32 / kTilesM, token_tile = piece / 32 % kTilesM, l = piece % 32;
      const int row = (row_group + r) * kGroupRows + l / 4;
      const int token = 8 * token_tile + l % 4 * 2;
      T* y = static_cast<T*>(args.y) + static_cast<size_t>(token) * args.n + row;
      if (row < args.n && token < args.m) y[0] = from_float<T>(sum.x);
      if (row < args.n && token + 1 < args.m) y[args.n] = from_float<T>(sum.y);
      if (row + 8 < args.n && token < args.m) y[8] = from_float<T>(sum.z);
      if (row + 8 < args.n && token + 1 < args.m) y[args.n + 8] = from_float<T>(sum.w);
    };
    // The sums of a pass that the cluster sent here; taken up one pass later, so that nobody waits for the slowest of
    // the cluster.
    const int exchange_half = plan.pass_rows * kTilesM * 512;
    const auto finish_exchanged = [&](int pass, int row, int count) {
      ptx::mbarrier_wait_cluster(exchange_barrier + (pass & 1) * 8, pass >> 1 & 1);
      const uint32_t from = base + plan.exchange_at + (pass & 1) * exchange_half;
      const int share = count * kTilesM * 32 >> plan.split_shift;
#pragma unroll 1
      for (int slot = adder; slot < share; slot += kAdders) {
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 1
        for (int source = 0; source < plan.split; ++source) sum = sum + get(from + (source * share + slot) * 16);
        finish(sum, rank * share + slot, row);
      }
    };
    if (args.dependent_launch) ptx::wait_for_previous_kernel();
    if (plan.split > 1) ptx::cluster_wait();  // every block of the cluster has started and set up its barriers
    int pass = 0, last_row = 0, last_count = 0;
#pragma unroll 1
    for (int row = rows_begin; row < rows_end; ++pass) {
      const int count = pass_count(row), pieces = count * kTilesM * 32;
      ptx::mbarrier_wait(sums_full, pass & 1);
      if (plan.split > 1) {
        if (pass > 0) finish_exchanged(pass - 1, last_row, last_count);
        if (adder == 0) ptx::mbarrier_arrive_expect(exchange_barrier + (pass & 1) * 8, pieces * 16);
        asm volatile("bar.sync 1, %0;" ::"n"(kAdders) : "memory");  // all have read what others may now overwrite
      }
#pragma unroll 1
      for (int piece = adder; piece < pieces; piece += kAdders) {
        float4 sum = get(sums_of(0) + piece * 16);
#pragma unroll
        for (int w = 1; w < kWarps; ++w) sum = sum + get(sums_of(w) + piece * 16);
        if (plan.split > 1) {
          const int share = pieces >> plan.split_shift;
          const int owner = piece / share, slot = piece - owner * share;
          const uint32_t to = base + plan.exchange_at + (pass & 1) * exchange_half + (rank * share + slot) * 16;
          ptx::store_async(ptx::map_to_rank(to, owner), sum,
                           ptx::map_to_rank(exchange_barrier + (pass & 1) * 8, owner));
        } else {
          finish(sum, piece, row);
        }
      }
      ptx::mbarrier_arrive(sums_free);
      last_row = row, last_count = count;
      row += count;
    }
    if (plan.split > 1) finish_exchanged(pass - 1, last_row, last_count);
    return;
  }

  // ------------------------------------------------------------------------------------------------------------------------
  // The warps that compute.
  // Where this lane's rows of activations (for ldmatrix) are in a stage; absent tokens read zeros outside the ring.
  uint32_t x_address[kTilesM];
  int x_step[kTilesM];
#pragma unroll
  for (int i = 0; i < kTilesM; ++i) {
    const int token = 8 * i + lane % 8;
    const bool there = token < args.m;
    const int x_row = warp * args.m + token;
    x_address[i] = there ? ring + plan.x_in_stage + x_row * 128 + (lane / 8 ^ (x_row & 7)) * 16 : base + plan.zeros_at;
    x_step[i] = there ? plan.stage_bytes : 0;
  }
  const bool half_unit_at_end = args.k % kUnitK != 0;

  int pass = 0, stage = 0, parity = 0;
  const auto run_pass = [&]<int kRows>() {
    float4 sums[kRows][kTilesM];
#pragma unroll
    for (int i = 0; i < kRows * kTilesM; ++i) sums[i / kTilesM][i % kTilesM] = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int unit_0 = unit_begin; unit_0 < unit_end; unit_0 += kWarps) {
      const int unit = unit_0 + warp;
      ptx::mbarrier_wait(full + stage * 8, parity);
      const uint32_t at = ring + stage * plan.stage_bytes;
      const uint32_t freed = empty + stage * 8;
      if (unit < unit_end) {
        uint32_t words[kRows][kBits];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const uint32_t here = at + r * kStepBytes + warp * kUnit;
          if constexpr (kBits == 4) {
            const uint4 v = ptx::load_shared_4(here + lane * 16);
            words[r][0] = v.x, words[r][1] = v.y, words[r][2] = v.z, words[r][3] = v.w;
          } else {
            const uint2 v = ptx::load_shared_2(here + lane * 8);
            words[r][0] = v.x, words[r][1] = v.y;
            if constexpr (kBits == 3) words[r][2] = ptx::load_shared(here + 256 + lane * 4);
          }
        }
        constexpr int kScaleSets = kGroup32 ? 2 : 1;
        uint32_t scales[kScaleSets][kRows];
        const int first_group = args.group < 0 ? 0 : unit_0 * kUnitK >> plan.group_shift;
        const int group = args.group < 0 ? 0 : unit * kUnitK >> plan.group_shift;
#pragma unroll
        for (int s = 0; s < kScaleSets;
             ++s) {  // half a unit may lie beyond K: its activations are 0, its scale must be finite
          const int there = kGroup32 ? min(group + s, args.groups - 1) : group;
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            scales[s][r] = ptx::load_shared(at + plan.scales_in_stage + r * plan.scale_pitch +
                                            (there - first_group) * kScaleBytes + g * 4);
          }
        }
        uint4 b[2][kTilesM];
        {
          const bool beyond = half_unit_at_end && unit + 1 == plan.units;  // the second half of this unit is not there
#pragma unroll
          for (int i = 0; i < kTilesM; ++i) {
            b[0][i] = ptx::load_matrices(x_address[i] + stage * x_step[i]);
            b[1][i] = ptx::load_matrices((x_address[i] + stage * x_step[i]) ^ 64);
            if (beyond) b[1][i] = make_uint4(0, 0, 0, 0);
          }
        }
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(freed);  // everything is in registers
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          uint32_t a[4][4];
          decode_unit<kBits, kPermutes>(words[r], table, a);
          {
            float4 part[kTilesM];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
              for (int i = 0; i < kTilesM; ++i) {
                if (half == 0 || kGroup32) part[i] = make_float4(0, 0, 0, 0);
                ptx::mma_16x8x16<T>(part[i], a[2 * half], b[half][i].x, b[half][i].y);
                ptx::mma_16x8x16<T>(part[i], a[2 * half + 1], b[half][i].z, b[half][i].w);
              }
              if (half == 1 || kGroup32) {
                const uint32_t s = scales[kGroup32 ? half : 0][r];
                const float lower = to_float<T>(s & 0xffff), upper = to_float<T>(s >> 16);
#pragma unroll
                for (int i = 0; i < kTilesM; ++i) {
                  sums[r][i].x += lower * part[i].x, sums[r][i].y += lower * part[i].y;
                  sums[r][i].z += upper * part[i].z, sums[r][i].w += upper * part[i].w;
                }
              }
            }
          }
        }
      } else {
        if (lane == 0) ptx::mbarrier_arrive(freed);
      }
      if (++stage == plan.stages) stage = 0, parity ^= 1;
    }
    // Put the sums down for the adding warps, which took up those of the pass before long ago.
    ptx::mbarrier_wait(sums_free, (pass & 1) ^ 1);
    const uint32_t mine = sums_of(warp) + lane * 16;
#pragma unroll
    for (int i = 0; i < kRows * kTilesM; ++i) {
      const float4 v = sums[i / kTilesM][i % kTilesM];
      ptx::store_shared_4(mine + i * 512, make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z),
                                                     __float_as_uint(v.w)));
    }
    ptx::mbarrier_arrive(sums_full);
  };

  const auto sync_computing = [] { asm volatile("bar.sync 2, %0;" ::"n"(32 * kWarps) : "memory"); };
#pragma unroll 1
  for (int row = rows_begin; row < rows_end; ++pass) {
    const int count = pass_count(row);
    const int now = args.segments > 1 ? segment_of(row) : 0;
    if (now != segment) {
      segment = now;
      sync_computing();  // nobody reads the old table any more
      build_table();
      sync_computing();
    }
    if constexpr (kMaxRows >= 4) {
      if (count == 4) run_pass.template operator()<4>();
    }
    if constexpr (kMaxRows >= 3) {
      if (count == 3) run_pass.template operator()<3>();
    }
    if (count == 2) run_pass.template operator()<2>();
    if (count == 1) run_pass.template operator()<1>();
    row += count;
  }
}

}  // namespace flute::cuda
