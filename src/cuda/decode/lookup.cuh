// Codes to operand A of the tensor cores through a table in shared memory.
#pragma once

#include "cuda/layout.hpp"
#include "cuda/plan.hpp"
#include "cuda/ptx/ptx.cuh"

namespace flute::cuda {

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

__device__ inline float4 sum_of(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// pair * scales, rounded to T: the value every backend computes with.
template <typename T>
__device__ inline uint32_t scale_pair(uint32_t pair, uint32_t scales);
template <>
__device__ inline uint32_t scale_pair<__half>(uint32_t pair, uint32_t scales) {
  const __half2 v = __hmul2_rn(*reinterpret_cast<const __half2*>(&pair), *reinterpret_cast<const __half2*>(&scales));
  return *reinterpret_cast<const uint32_t*>(&v);
}
template <>
__device__ inline uint32_t scale_pair<__nv_bfloat16>(uint32_t pair, uint32_t scales) {
  const __nv_bfloat162 v =
      __hmul2_rn(*reinterpret_cast<const __nv_bfloat162*>(&pair), *reinterpret_cast<const __nv_bfloat162*>(&scales));
  return *reinterpret_cast<const uint32_t*>(&v);
}

// The table in shared memory: entry e at e * 256, a copy for each bank, so that a lane only ever reads its own bank(s)
// and no conflict is possible. 4 and 3 bits: a pair, 32 copies of 4 bytes. 2 bits: two pairs, 16 copies of 8 bytes.
// Byte 1 of an address is then a byte of codes and byte 0 the lane's copy: one byte permute.
template <int kBits>
struct Table {
  uint32_t lane_offset;
  uint32_t low, high;  // 2 bits: low and high bytes of the four values, for byte permutes

  // `value`: the codebook, one value a lane. `own`: what a block's addresses of its shared memory carry in a cluster.
  __device__ void build(uint32_t value, int rounds, int warp, int warps, int lane, uint32_t own = 0) {
    constexpr int kCodes = 1 << kBits;
    const auto at = [&](uint32_t code) { return __shfl_sync(~0u, value, static_cast<int>(code), kCodes); };
    constexpr uint32_t kEntries = kBits == 3 ? 64 : 256;
    uint32_t e = warp * 4 + lane / 8;  // a warp writes four entries at a time
    uint32_t to = own + kTableAddress + e * kTableStride + lane % 8 * 16;
#pragma unroll 1
    for (int i = 0; i < rounds; ++i) {
      uint4 piece;
      if constexpr (kBits == 2) {
        piece.x = __byte_perm(at(e), at(e >> 4), 0x5410);
        piece.y = __byte_perm(at(e >> 2), at(e >> 6), 0x5410);
        piece.z = piece.x, piece.w = piece.y;
      } else {
        piece.x = __byte_perm(at(e), at(e >> kBits), 0x5410);
        piece.y = piece.z = piece.w = piece.x;
      }
      if (e < kEntries) ptx::store_shared_4(to, piece);
      e += warps * 4, to += warps * 4 * kTableStride;
    }
    lane_offset = own | (kBits == 2 ? lane % 16 * 8 : lane * 4);
  }

  // For permute(), 2 bits.
  __device__ void build_permutes(uint32_t value) {
    low = high = 0;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const uint32_t v = __shfl_sync(~0u, value, c, 4);
      low |= (v & 0xff) << (8 * c);
      high |= v >> 8 << (8 * c);
    }
  }

  // The values of the codes in the four low nibbles of s, whose other bits are 0, as two pairs.
  __device__ void permute(uint32_t s, uint32_t& first, uint32_t& second) const {
    const uint32_t l = __byte_perm(low, 0, s), h = __byte_perm(high, 0, s);
    first = __byte_perm(l, h, 0x5140);
    second = __byte_perm(l, h, 0x7362);
  }

  // The entry of byte `byte` of w: one instruction for the address, one for the load.
  __device__ uint32_t pair(uint32_t w, int byte) const {
    return ptx::load_shared<kTableAddress>(__byte_perm(w, lane_offset, 0x7604 | byte << 4));
  }
  __device__ uint2 two_pairs(uint32_t w, int byte) const {
    return ptx::load_shared_2<kTableAddress>(__byte_perm(w, lane_offset, 0x7604 | byte << 4));
  }

  // Fragment `fragment` (0..3) of a unit, whose words are `words`, as registers a0..a3.
  // kPermutes (2 bits): how many of the four fragments are decoded by byte permutes instead of lookups: it takes
  // work from shared memory, whose 16 passes a unit bind at few bits, and gives a little more to the integer pipe.
  template <int kPermutes = 0>
  __device__ void decode(const uint32_t* words, int fragment, uint32_t (&a)[4]) const {
    if constexpr (kBits == 4) {
      const uint32_t w = words[fragment];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = pair(w, i);
    } else if constexpr (kBits == 3) {
      uint32_t w;
      if (fragment < 3) {
        w = words[fragment] & 0x3f3f3f3f;
      } else {
        w = words[0] >> 6 & 0x03030303;
        w = (words[1] >> 4 & 0x0c0c0c0c) | w;
        w = (words[2] >> 2 & 0x30303030) | w;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = pair(w, i);
    } else {
      const uint32_t w = words[fragment / 2];
      if (fragment >= 4 - kPermutes) {
        const uint32_t s = fragment % 2 == 0 ? w : w >> 16;
        permute(s & 0x3333, a[0], a[2]);
        permute(s >> 2 & 0x3333, a[1], a[3]);
      } else {
        const uint2 first = two_pairs(w, fragment % 2 * 2), second = two_pairs(w, fragment % 2 * 2 + 1);
        a[0] = first.x, a[1] = first.y, a[2] = second.x, a[3] = second.y;
      }
    }
  }
};

}  // namespace flute::cuda
