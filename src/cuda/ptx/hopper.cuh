// Named wrappers of the PTX instructions that Hopper has beyond ptx.cuh (sm_90a): mbarriers, copies by the copy engine,
// clusters, wgmma. One instruction each, nothing clever.
#pragma once

#include <type_traits>

#include "cuda/ptx/ptx.cuh"

namespace flute::cuda::ptx {

// --- mbarriers and the copy engine ---

__device__ inline void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine and to the other blocks of the cluster.
__device__ inline void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and has the barrier wait for so many bytes of copies.
__device__ inline void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

#define FLUTE_MBARRIER_WAIT(semantics)     \
  asm volatile(                            \
      "{\n"                                \
      ".reg .pred done;\n"                 \
      "again:\n"                           \
      "mbarrier.try_wait.parity" semantics \
      ".shared::cta.b64 done, [%0], %1;\n" \
      "@done bra finished;\n"              \
      "bra again;\n"                       \
      "finished:\n"                        \
      "}\n" ::"r"(barrier),                \
      "r"(parity)                          \
      : "memory")
__device__ inline void mbarrier_wait(uint32_t barrier, uint32_t parity) { FLUTE_MBARRIER_WAIT(""); }
// For data that other blocks of the cluster send.
__device__ inline void mbarrier_wait_cluster(uint32_t barrier, uint32_t parity) {
  FLUTE_MBARRIER_WAIT(".acquire.cluster");
}
#undef FLUTE_MBARRIER_WAIT

// Copies `bytes` (a multiple of 16) from global to shared memory; `barrier` counts them when they have landed. Both
// addresses are of the cluster's window: a block's own with its rank (shared_address gives it).
__device__ inline void copy_bulk(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
               "l"(global), "r"(bytes), "r"(barrier)
               : "memory");
}

// Copies the box at (x, y) of a tensor map to shared memory (1024-byte aligned where swizzled); `barrier` counts the
// bytes of the whole box, also of what lies outside the tensor and becomes zero.
__device__ inline void copy_tensor(uint32_t shared, const void* map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// Has the copy engine read a tensor map (a kernel's parameter) before the first copy needs it.
__device__ inline void prefetch_tensor_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// --- clusters ---

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ inline uint32_t cluster_index() {
  uint32_t index;
  asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(index));
  return index;
}

// The address of the same shared-memory place in another block of the cluster.
__device__ inline uint32_t map_to_rank(uint32_t shared, uint32_t rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(shared), "r"(rank));
  return mapped;
}

// Stores to a block of the cluster, whose `barrier` counts the 16 bytes when they have landed.
__device__ inline void send(uint32_t address, float4 v, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
      : "memory");
}

// All threads of all blocks of the cluster meet. Stores are not waited for, which would take a microsecond.
__device__ inline void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Orders this thread's accesses to shared memory before the copy engine's that follow.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// As named_barrier, without waiting for the others.
__device__ inline void named_barrier_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- registers ---

// A warpgroup gives up the registers beyond, or waits for, so many a thread.
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// The same value, which the compiler keeps in a register and does not compute again.
template <typename T>
__device__ inline T opaque(T v) {
  asm volatile("" : "+r"(v));
  return v;
}

// --- transposed stores ---

// Four 8 x 8 matrices of 16-bit values, transposed: lane l gives the address of column l % 8 of matrix l / 8.
__device__ inline void store_matrices_transposed(uint32_t address, uint4 v) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x),
               "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// --- wgmma: the tensor cores read registers and shared memory while the warp goes on ---

// Registers written before are seen by the wgmma that follow.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// d (64 rows of a warpgroup x 8 kTiles tokens) += a (registers, 64 x 16) * b (shared memory, [token][k], 128-byte
// swizzle).
#define FLUTE_NUMBERS_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define FLUTE_NUMBERS_16 \
  FLUTE_NUMBERS_0 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FLUTE_NUMBERS_32 \
  FLUTE_NUMBERS_16 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define FLUTE_NUMBERS_48 \
  FLUTE_NUMBERS_32 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FLUTE_NUMBERS_64 \
  FLUTE_NUMBERS_48 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define FLUTE_NUMBERS_80 \
  FLUTE_NUMBERS_64 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FLUTE_NUMBERS_112                                                                                            \
  FLUTE_NUMBERS_80                                                                                                   \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, " \
  "%115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FLUTE_SUM(i) "+f"(d[i].x), "+f"(d[i].y), "+f"(d[i].z), "+f"(d[i].w)
#define FLUTE_SUMS(i) FLUTE_SUM(i), FLUTE_SUM(i + 1), FLUTE_SUM(i + 2), FLUTE_SUM(i + 3)
// `sums`: the numbers of the sums' registers; `operands`: those of a and b, which come next.
#define FLUTE_WGMMA(tokens, type, sums, operands, ...)                                                              \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #tokens "k16.f32." type " {" sums "}, " operands ", 1, 1, 1, 0;" \
               : __VA_ARGS__                                                                                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define FLUTE_WGMMA_OF(tokens, sums, operands, ...)                  \
  if constexpr (kTiles == tokens / 8) {                              \
    if constexpr (std::is_same_v<T, __half>) {                       \
      FLUTE_WGMMA(tokens, "f16.f16", sums, operands, __VA_ARGS__);   \
    } else {                                                         \
      FLUTE_WGMMA(tokens, "bf16.bf16", sums, operands, __VA_ARGS__); \
    }                                                                \
  }
template <typename T, int kTiles, int kSums>
__device__ inline void wgmma(float4 (&d)[kSums], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kTiles == 4 || kTiles == 8 || kTiles == 12 || kTiles == 16 || kTiles == 17 || kTiles == 20 ||
                kTiles == 24 || kTiles == 32);
  FLUTE_WGMMA_OF(32, FLUTE_NUMBERS_0, "{%16, %17, %18, %19}, %20", FLUTE_SUMS(0))
  FLUTE_WGMMA_OF(64, FLUTE_NUMBERS_16, "{%32, %33, %34, %35}, %36", FLUTE_SUMS(0), FLUTE_SUMS(4))
  FLUTE_WGMMA_OF(96, FLUTE_NUMBERS_32, "{%48, %49, %50, %51}, %52", FLUTE_SUMS(0), FLUTE_SUMS(4), FLUTE_SUMS(8))
  FLUTE_WGMMA_OF(128, FLUTE_NUMBERS_48, "{%64, %65, %66, %67}, %68", FLUTE_SUMS(0), FLUTE_SUMS(4), FLUTE_SUMS(8),
                 FLUTE_SUMS(12))
  FLUTE_WGMMA_OF(136, FLUTE_NUMBERS_48 ", %64, %65, %66, %67", "{%68, %69, %70, %71}, %72", FLUTE_SUMS(0),
                 FLUTE_SUMS(4), FLUTE_SUMS(8), FLUTE_SUMS(12), FLUTE_SUM(16))
  FLUTE_WGMMA_OF(160, FLUTE_NUMBERS_64, "{%80, %81, %82, %83}, %84", FLUTE_SUMS(0), FLUTE_SUMS(4), FLUTE_SUMS(8),
                 FLUTE_SUMS(12), FLUTE_SUMS(16))
  FLUTE_WGMMA_OF(192, FLUTE_NUMBERS_80, "{%96, %97, %98, %99}, %100", FLUTE_SUMS(0), FLUTE_SUMS(4), FLUTE_SUMS(8),
                 FLUTE_SUMS(12), FLUTE_SUMS(16), FLUTE_SUMS(20))
  FLUTE_WGMMA_OF(256, FLUTE_NUMBERS_112, "{%128, %129, %130, %131}, %132", FLUTE_SUMS(0), FLUTE_SUMS(4), FLUTE_SUMS(8),
                 FLUTE_SUMS(12), FLUTE_SUMS(16), FLUTE_SUMS(20), FLUTE_SUMS(24), FLUTE_SUMS(28))
}
#undef FLUTE_WGMMA_OF
#undef FLUTE_WGMMA
#undef FLUTE_SUMS
#undef FLUTE_SUM
#undef FLUTE_NUMBERS_112
#undef FLUTE_NUMBERS_80
#undef FLUTE_NUMBERS_64
#undef FLUTE_NUMBERS_48
#undef FLUTE_NUMBERS_32
#undef FLUTE_NUMBERS_16
#undef FLUTE_NUMBERS_0

}  // namespace flute::cuda::ptx
