// What the readers need beyond the library's own wrappers.
#pragma once

#include "cuda/ptx/hopper.cuh"

namespace flute::cuda::ptx {

// A cache policy for bytes that are read once: they leave L2 before activations and partial sums do.
__device__ inline uint64_t evict_first_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// copy_bulk with a cache policy.
__device__ inline void copy_bulk(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier,
                                 uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// As copy_bulk, into the same place of every block of the cluster in `blocks` (a bit each), counted by the barrier
// there.
__device__ inline void copy_bulk_multicast(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier,
                                           uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
      "%4;" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "h"(blocks)
      : "memory");
}

// Arrives at a barrier of another block of the cluster (an address from map_to_rank).
__device__ inline void mbarrier_arrive_remote(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

}  // namespace flute::cuda::ptx
