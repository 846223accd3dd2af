// The same multiply for more tokens (N = 32 or 64 columns of the tensor-core instruction), on wgmma.
//
// Codes become A fragments as in decode.cuh, but a warpgroup's four warps hold 64 rows of one wgmma, whose operand B
// the tensor cores read from shared memory once for all of them: activations cost a quarter of the shared-memory reads
// and no instruction. Four warpgroups stand row_warpgroups across rows and the rest along K, so that a block's pass of
// up to 16 row groups shares each fetch of X. One warp fetches: codes, scales and X are tensor copies; places outside a
// tensor come as zeros, so K and M need no special care.
#pragma once

#include "decode.cuh"

namespace flute::cuda {

// D (64 rows x 8 kTilesM tokens) += A (registers, 64 x 16) * B (shared memory, 128-byte swizzled, k fastest).
template <typename T, int kTilesM>
__device__ inline void wgmma(float4 (&d)[kTilesM], const uint32_t (&a)[4], uint64_t b) {
#define FLUTE_D4(i) "+f"(d[i].x), "+f"(d[i].y), "+f"(d[i].z), "+f"(d[i].w)
#define FLUTE_AB "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
#define FLUTE_WGMMA_32(type)                                                               \
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                 \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, " \
               "{%16, %17, %18, %19}, %20, 1, 1, 1, 0;"                                    \
               : FLUTE_D4(0), FLUTE_D4(1), FLUTE_D4(2), FLUTE_D4(3)                        \
               : FLUTE_AB)
#define FLUTE_WGMMA_64(type)                                                                                       \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                         \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
               "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"    \
               : FLUTE_D4(0), FLUTE_D4(1), FLUTE_D4(2), FLUTE_D4(3), FLUTE_D4(4), FLUTE_D4(5), FLUTE_D4(6),        \
                 FLUTE_D4(7)                                                                                       \
               : FLUTE_AB)
  if constexpr (std::is_same_v<T, __half>) {
    if constexpr (kTilesM == 4) FLUTE_WGMMA_32("f16");
    if constexpr (kTilesM == 8) FLUTE_WGMMA_64("f16");
  } else {
    if constexpr (kTilesM == 4) FLUTE_WGMMA_32("bf16");
    if constexpr (kTilesM == 8) FLUTE_WGMMA_64("bf16");
  }
#undef FLUTE_WGMMA_64
#undef FLUTE_WGMMA_32
#undef FLUTE_AB
#undef FLUTE_D4
}

constexpr int kWideWarps = 16, kWideThreads = 32 * (kWideWarps + 1);

// kPair: two blocks share K. A kernel of its own: with the exchange in it the loop of every shape became 20 % slower.
// kDepth: units of K that a warpgroup takes from a stage; with two, decoding one overlaps the tensor cores' work on the
// other.
template <typename T, int kBits, int kTilesM, int kDepth, bool kPair, bool kGroup32>
__global__ void __launch_bounds__(kWideThreads, 1)
    decode_wide_kernel(const __grid_constant__ DecodeArguments args, const __grid_constant__ DecodeMaps maps) {
  using namespace detail;
  using T2 = typename Pair<T>::type;
  constexpr int kUnit = unit_bytes(kBits), kXUnit = 8 * kTilesM * 128;
  const DecodePlan& plan = args.plan;

  extern __shared__ __align__(1024) uint8_t shared_memory[];
  const uint32_t base = ptx::shared_address(shared_memory);
  if ((base & 0xffffff) != kSharedStart) __trap();  // the plan placed the table by absolute address
  const uint32_t full = base, empty = base + kMaxStages * 8, ring = base + plan.ring_at;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4;
  const uint32_t exchange_full = base + 2 * kMaxStages * 8, exchange_free = exchange_full + 8;
  const int rank = kPair ? static_cast<int>(ptx::cluster_rank()) : 0, cluster = kPair ? blockIdx.x / 2 : blockIdx.x;
  const int rows_begin = share_begin(plan.rows_each, plan.rows_longer, cluster);
  const int rows_end = share_begin(plan.rows_each, plan.rows_longer, cluster + 1);

  if (warp == kWideWarps && lane == 0) {
#pragma unroll 1
    for (int i = 0; i < plan.stages; ++i) {
      ptx::mbarrier_init(full + i * 8, 1);
      ptx::mbarrier_init(empty + i * 8, kWideWarps);
    }
    ptx::mbarrier_init(exchange_full, 1);
    ptx::mbarrier_init(exchange_free, 1);
    ptx::fence_mbarrier_init();
  }
  __syncwarp();
  if constexpr (kPair) ptx::cluster_arrive_relaxed();
  if (warp == kWideWarps) asm volatile("bar.arrive 3, %0;" ::"n"(kWideThreads) : "memory");
  if (args.dependent_launch) ptx::let_next_kernel_start();

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
  int segment = segment_of(rows_begin);
  Table<kBits> table;
  const auto build_table = [&] {
    table.template build<kWideWarps>(base + plan.table_at,
                                     static_cast<const uint16_t*>(args.codebooks) + (segment << kBits), warp, lane);
  };

  // The warp that fetches.
  if (warp == kWideWarps) {
    if (lane == 0) {
      const int unit_begin = rank * plan.slice_each, unit_end = unit_begin + plan.slice_each;
      struct Cursor {
        int row, count, unit;
      };
      const auto advance = [&](Cursor& c) {
        c.unit += plan.step_units;
        if (c.unit >= unit_end) {
          c.row += c.count, c.unit = unit_begin;
          if (c.row < rows_end) c.count = pass_count(c.row);
        }
      };
      const uint64_t once = ptx::evict_first_policy(), often = ptx::evict_last_policy();
      const int row_bytes = plan.step_units * kUnit;
      const auto fetch_weights = [&](const Cursor& c, int stage) {
        const uint32_t barrier = full + stage * 8, to = ring + stage * plan.stage_bytes;
        ptx::mbarrier_arrive_expect(barrier, c.count * row_bytes + plan.scale_box + plan.x_bytes);
        for (int left = c.count, row = 0; left > 0;) {  // boxes of 8, 4, 2 and 1 row groups
          const int power = min(31 - __clz(left), 3), rows = 1 << power;
          ptx::copy_tensor(to + row * row_bytes, &maps.codes[power], 0, c.unit, c.row + row, barrier, once);
          row += rows, left -= rows;
        }
        const int first = args.group < 0 ? 0 : c.unit * kUnitK >> plan.group_shift;
        ptx::copy_tensor(to + plan.scales_in_stage, &maps.scales[0], first * (kScaleBytes / 4), c.row, barrier, once);
      };
      const auto fetch_tokens = [&](const Cursor& c, int stage) {
        const uint32_t to = ring + stage * plan.stage_bytes + plan.x_in_stage;
        for (int i = 0; i < plan.step_units; ++i)
          ptx::copy_tensor(to + i * kXUnit, &maps.x, (c.unit + i) * kUnitK, 0, full + stage * 8, often);
      };
      Cursor at = {rows_begin, pass_count(rows_begin), unit_begin};
      Cursor late = at;
      int early = 0;
      for (; early < plan.early_stages && at.row < rows_end; ++early) fetch_weights(at, early), advance(at);
      if (args.dependent_launch) ptx::wait_for_previous_kernel();
      for (int i = 0; i < early; ++i) fetch_tokens(late, i), advance(late);
      int stage = early, parity = 1;
      if (stage == plan.stages) stage = 0, parity = 0;
#pragma unroll 1
      while (at.row < rows_end) {
        ptx::mbarrier_wait(empty + stage * 8, parity);  // parity 1 passes in the first round
        fetch_weights(at, stage);
        fetch_tokens(at, stage);
        advance(at);
        if (++stage == plan.stages) stage = 0, parity ^= 1;
      }
    }
    return;
  }

  // The warps that compute.
  const int row_warpgroup = warp / 4 & (plan.row_warpgroups - 1), k_warpgroup = warp / 4 / plan.row_warpgroups;
  const int k_warpgroups = 4 / plan.row_warpgroups;
  const int my_row = row_warpgroup * 4 + warp % 4;  // in a pass
  build_table();
  asm volatile("bar.sync 3, %0;" ::"n"(kWideThreads) : "memory");  // table written, barriers set up
  if (args.dependent_launch) ptx::wait_for_previous_kernel();      // which may still read Y
  const auto sync_computing = [] { asm volatile("bar.sync 2, %0;" ::"n"(32 * kWideWarps) : "memory"); };
  const auto get = [](uint32_t address) {
    const uint4 v = ptx::load_shared_4(address);
    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
  };
  // Shared-memory descriptor of a unit of X: 1024 bytes from 8 tokens to the next 8, 128-byte swizzle.
  constexpr uint64_t kXDescriptor = 1ull << 62 | 64ull << 32;

  const int group_shift = args.group < 0 ? 31 : plan.group_shift;
  // This lane's places in a stage: codes of its first unit, scales of its row group.
  const uint32_t words_at = (my_row * plan.step_units + k_warpgroup * kDepth) * kUnit + lane * (kBits == 4 ? 16 : 8);
  const uint32_t scales_at = plan.scales_in_stage + my_row * plan.scale_pitch + g * 4;
  if constexpr (kPair) ptx::cluster_wait();  // the other block has set up its barriers
  int stage = 0, parity = 0, pass = 0;
#pragma unroll 1
  for (int row = rows_begin; row < rows_end;) {
    const int count = pass_count(row);
    const int now = args.segments > 1 ? segment_of(row) : 0;
    if (now != segment) {
      segment = now;
      sync_computing();  // nobody reads the old table any more
      build_table();
      sync_computing();
    }
    const bool live = my_row < count;
    float4 sums[kTilesM];
    uint32_t a[kDepth][4][4];
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) sums[i] = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < 16 * kDepth; ++i) a[i / 16][i / 4 % 4][i % 4] = 0;
    // Units count from the block's first, which begins a scale group: uniform for the compiler whatever the rank.
    uint32_t to_free = 0;  // the stage whose activations the tensor cores may still read
#pragma unroll 1
    for (int unit_0 = 0; unit_0 < plan.slice_each; unit_0 += plan.step_units) {
      constexpr int kScaleSets = kGroup32 ? 2 : 1;
      const uint32_t at = ring + stage * plan.stage_bytes;
      const int first_group = unit_0 * kUnitK >> group_shift;
      uint32_t words[kDepth][kBits], scales[kDepth][kScaleSets];
      ptx::mbarrier_wait(full + stage * 8, parity);
      if (live) {
#pragma unroll
        for (int j = 0; j < kDepth; ++j) {
          const uint32_t here = at + words_at + j * kUnit;
          if constexpr (kBits == 4) {
            const uint4 v = ptx::load_shared_4(here);
            words[j][0] = v.x, words[j][1] = v.y, words[j][2] = v.z, words[j][3] = v.w;
          } else {
            const uint2 v = ptx::load_shared_2(here);
            words[j][0] = v.x, words[j][1] = v.y;
            if constexpr (kBits == 3) words[j][2] = ptx::load_shared(at + words_at + j * kUnit + 256 - lane * 4);
          }
          const int group = ((unit_0 + k_warpgroup * kDepth + j) * kUnitK >> group_shift) - first_group;
#pragma unroll
          for (int i = 0; i < kScaleSets; ++i)
            scales[j][i] = ptx::load_shared(at + scales_at + (group + i) * kScaleBytes);
        }
      }
      // The same in all lanes, so that descriptors are made by the uniform units.
      const uint32_t x_low =
          __shfl_sync(~0u, ((at + plan.x_in_stage + k_warpgroup * (kDepth * kXUnit)) & 0x3ffff) >> 4, 0);
#pragma unroll
      for (int j = 0; j < kDepth; ++j) {
        ptx::wgmma_wait<kDepth - 1>();  // these fragments may be overwritten
        if (j == kDepth - 1) {
          if (to_free != 0 && lane == 0) ptx::mbarrier_arrive(to_free);
        }
        if (live) {
          decode_unit<kBits, 0>(words[j], table, a[j]);
#pragma unroll
          for (int f = 0; f < 4; ++f) {
            const uint32_t s = scales[j][kGroup32 ? f / 2 : 0];
            const T2 both = *reinterpret_cast<const T2*>(&s);
            const T2 lower = T2(both.x, both.x), upper = T2(both.y, both.y);
            a[j][f][0] = scale_pair(a[j][f][0], lower), a[j][f][2] = scale_pair(a[j][f][2], lower);
            a[j][f][1] = scale_pair(a[j][f][1], upper), a[j][f][3] = scale_pair(a[j][f][3], upper);
          }
        }
        ptx::wgmma_fence();
#pragma unroll
        for (int f = 0; f < 4; ++f)
          wgmma<T, kTilesM>(sums, a[j][f], kXDescriptor | (x_low + j * (kXUnit / 16) + 2 * f));
        ptx::wgmma_commit();
      }
      to_free = empty + stage * 8;
      if (++stage == plan.stages) stage = 0, parity ^= 1;
    }
    ptx::wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < kTilesM; ++i)
      asm volatile("" : "+f"(sums[i].x), "+f"(sums[i].y), "+f"(sums[i].z), "+f"(sums[i].w)::"memory");
    if (lane == 0) ptx::mbarrier_arrive(to_free);

      // The first warpgroup along K adds up the others', one after the other.
#pragma unroll 1
    for (int source = 1; source < k_warpgroups; ++source) {
      const uint32_t there = base + plan.sums_at + my_row * (kTilesM * 512) + lane * 16;
      if (k_warpgroup == source) {
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
          ptx::store_shared_4(there + i * 512, make_uint4(__float_as_uint(sums[i].x), __float_as_uint(sums[i].y),
                                                          __float_as_uint(sums[i].z), __float_as_uint(sums[i].w)));
        }
      }
      sync_computing();
      if (k_warpgroup == 0) {
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) sums[i] = sums[i] + get(there + i * 512);
      }
      sync_computing();
    }
    // The second block of a pair sends its sums to the first.
    if constexpr (kPair) {
      const uint32_t there = base + plan.exchange_at + my_row * (kTilesM * 512) + lane * 16;
      if (rank == 0 && thread == 0) ptx::mbarrier_arrive_expect(exchange_full, count * (kTilesM * 512));
      if (rank == 1 && k_warpgroup == 0 && live) {
        ptx::mbarrier_wait_cluster(exchange_free, pass & 1 ^ 1);  // passes the first time
#pragma unroll
        for (int i = 0; i < kTilesM; ++i)
          ptx::store_async(ptx::map_to_rank(there + i * 512, 0), sums[i], ptx::map_to_rank(exchange_full, 0));
      }
      if (rank == 0 && k_warpgroup == 0 && live) {
        ptx::mbarrier_wait_cluster(exchange_full, pass & 1);
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) sums[i] = sums[i] + get(there + i * 512);
      }
      if (rank == 0 && row + count < rows_end) {  // else nobody waits, and the other block may be gone
        sync_computing();
        if (thread == 0) ptx::mbarrier_arrive_remote(ptx::map_to_rank(exchange_free, 1));
      }
      ++pass;
    }
    if (rank == 0 && k_warpgroup == 0 && live) {
      const int out = (row + my_row) * kGroupRows + g;
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
        const int token = 8 * i + lane % 4 * 2;
        T* y = static_cast<T*>(args.y) + static_cast<size_t>(token) * args.n + out;
        if (out < args.n && token < args.m) y[0] = from_float<T>(sums[i].x);
        if (out < args.n && token + 1 < args.m) y[args.n] = from_float<T>(sums[i].y);
        if (out + 8 < args.n && token < args.m) y[8] = from_float<T>(sums[i].z);
        if (out + 8 < args.n && token + 1 < args.m) y[args.n + 8] = from_float<T>(sums[i].w);
      }
    }
    row += count;
  }
}

}  // namespace flute::cuda
