// What CUDA C++ has beyond C++, as far as the kernels use it, for the emulated device.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/half.hpp"
#include "cuda/emulation/machine.hpp"

#define __global__
#define __device__
#define __host__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

using cudaError_t = int;
using cudaStream_t = void*;

struct uint2 {
  uint32_t x, y;
};
struct uint3 {
  uint32_t x, y, z;
};
using dim3 = uint3;
struct uint4 {
  uint32_t x, y, z, w;
};
struct float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using C = std::common_type_t<A, B>;
  return static_cast<C>(b) < static_cast<C>(a) ? static_cast<C>(b) : static_cast<C>(a);
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using C = std::common_type_t<A, B>;
  return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(b) : static_cast<C>(a);
}

// --- numbers ---

using std::isfinite;

struct __half {
  uint16_t bits;
  operator float() const { return flute::f16_bits_to_f32(bits); }
};
struct __nv_bfloat16 {
  uint16_t bits;
  operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};
struct __half2 {
  __half x, y;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline float __half2float(__half value) { return value; }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline __half __float2half_rn(float value) { return {flute::f32_to_f16_bits(value)}; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value != value) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __half2 __floats2half2_rn(float low, float high) { return {__float2half_rn(low), __float2half_rn(high)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}
// A product of two fits into a float, so it is rounded once.
inline __half2 __hmul2_rn(__half2 a, __half2 b) {
  return {__float2half_rn(float{a.x} * float{b.x}), __float2half_rn(float{a.y} * float{b.y})};
}
inline __nv_bfloat162 __hmul2_rn(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {__float2bfloat16_rn(float{a.x} * float{b.x}), __float2bfloat16_rn(float{a.y} * float{b.y})};
}

// Byte i of the result is byte (selector >> 4 i & 7) of {y, x}, or its sign in all bits where bit 3 is set.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = selector >> (4 * i);
    uint32_t byte = bytes >> (8 * (s & 7)) & 0xff;
    if ((s & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}

// The low word of {high, low} >> (shift mod 32).
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (shift % 32));
}

// --- memory ---

template <typename V>
V __ldg(const V* at) {
  return *at;
}
inline void atomicMin(unsigned long long* at, unsigned long long value) { *at = min(*at, value); }

// --- threads ---

[[noreturn]] inline void __trap() { flute::emulation::stop("trap"); }

inline void __syncthreads(int line = __builtin_LINE()) {
  flute::emulation::block_barrier(0, static_cast<int>(blockDim.x), "__syncthreads", line);
}

inline void __syncwarp(int line = __builtin_LINE()) {
  flute::emulation::warp_collective(
      nullptr, [](flute::emulation::Lanes) {}, "__syncwarp", line);
}

template <typename T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, int line = __builtin_LINE()) {
  struct Mine {
    T value, result;
    int from;
  };
  if (mask != ~0u) flute::emulation::stop("__shfl_sync: not all lanes");
  const int self = static_cast<int>(threadIdx.x % 32);
  Mine mine{value, value, (self & ~(width - 1)) | (lane & (width - 1))};
  const auto execute = [](flute::emulation::Lanes lanes) {
    for (void* to : lanes) {
      static_cast<Mine*>(to)->result = static_cast<const Mine*>(lanes[static_cast<Mine*>(to)->from])->value;
    }
  };
  flute::emulation::warp_collective(&mine, execute, "__shfl_sync", line);
  return mine.result;
}
