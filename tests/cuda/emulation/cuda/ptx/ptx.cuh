// src/cuda/ptx/ptx.cuh for the emulated device: the same wrappers, each doing what the PTX ISA says of its instruction.
#pragma once
#include "cuda_runtime.h"

namespace flute::cuda::ptx {

inline uint32_t shared_address(const void*) { return emulation::shared_begin(); }

// --- asynchronous copies ---

inline void copy_16(uint32_t shared, const void* global, uint32_t valid = 16, int line = __builtin_LINE()) {
  emulation::copy_16(shared, global, valid, line);
}
inline void copy_commit() { emulation::copy_commit(); }
template <int kPending>
void copy_wait() {
  emulation::copy_wait(kPending);
}

// --- programmatic dependent launch ---

inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}

// --- global memory ---

inline uint32_t load_global_2(const uint16_t* global) { return *global; }

// --- shared memory ---

template <typename V>
V load(uint32_t address, int line) {
  V v;
  std::memcpy(&v, emulation::shared_in(address, sizeof(V), "load_shared", line), sizeof(V));
  return v;
}
template <uint32_t kOffset>
uint32_t load_shared(uint32_t address, int line = __builtin_LINE()) {
  return load<uint32_t>(address + kOffset, line);
}
template <uint32_t kOffset>
uint2 load_shared_2(uint32_t address, int line = __builtin_LINE()) {
  return load<uint2>(address + kOffset, line);
}
inline uint4 load_shared_4(uint32_t address, int line = __builtin_LINE()) { return load<uint4>(address, line); }

inline void store_shared_4(uint32_t address, uint4 v, int line = __builtin_LINE()) {
  std::memcpy(emulation::shared_out(address, sizeof(v), "store_shared_4", line), &v, sizeof(v));
}

inline void store_shared(uint32_t address, uint32_t v, int line = __builtin_LINE()) {
  std::memcpy(emulation::shared_out(address, sizeof(v), "store_shared", line), &v, sizeof(v));
}
inline uint16_t load_shared_short(uint32_t address, int line = __builtin_LINE()) {
  return load<uint16_t>(address, line);
}
inline float4 load_shared_floats(uint32_t address, int line = __builtin_LINE()) { return load<float4>(address, line); }
inline void store_shared_floats(uint32_t address, float4 v, int line = __builtin_LINE()) {
  std::memcpy(emulation::shared_out(address, sizeof(v), "store_shared_floats", line), &v, sizeof(v));
}

inline uint4 load_matrices(uint32_t address, int line = __builtin_LINE()) {
  struct Mine {
    const void* row;
    uint4 result;
  } mine{emulation::shared_in(address, 16, "load_matrices", line), {}};
  // Lane l gets values 2 (l % 4) and the next of row l / 4 of each matrix.
  const auto execute = [](emulation::Lanes lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      uint32_t got[4];
      for (int matrix = 0; matrix < 4; ++matrix) {
        const void* row = static_cast<const Mine*>(lanes[matrix * 8 + lane / 4])->row;
        std::memcpy(&got[matrix], static_cast<const uint8_t*>(row) + lane % 4 * 4, 4);
      }
      static_cast<Mine*>(lanes[lane])->result = {got[0], got[1], got[2], got[3]};
    }
  };
  emulation::warp_collective(&mine, execute, "load_matrices", line);
  return mine.result;
}

inline uint32_t transpose_matrix(uint32_t pair, int line = __builtin_LINE()) {
  struct Mine {
    uint32_t pair, result;
  } mine{pair, 0};
  const auto execute = [](emulation::Lanes lanes) {
    uint16_t rows[8][8];
    for (int lane = 0; lane < 32; ++lane) {
      const uint32_t two = static_cast<const Mine*>(lanes[lane])->pair;
      rows[lane / 4][lane % 4 * 2] = static_cast<uint16_t>(two);
      rows[lane / 4][lane % 4 * 2 + 1] = static_cast<uint16_t>(two >> 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      static_cast<Mine*>(lanes[lane])->result = rows[column][row] | uint32_t{rows[column + 1][row]} << 16;
    }
  };
  emulation::warp_collective(&mine, execute, "transpose_matrix", line);
  return mine.result;
}

// --- threads ---

inline void named_barrier(int id, uint32_t threads, int line = __builtin_LINE()) {
  emulation::block_barrier(id, static_cast<int>(threads), "named_barrier", line);
}

// --- arithmetic ---

template <typename T>
void put_pair(float* to, uint32_t pair) {
  to[0] = T{static_cast<uint16_t>(pair)};
  to[1] = T{static_cast<uint16_t>(pair >> 16)};
}

template <typename T>
void mma_16x8x16(float4& d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line = __builtin_LINE()) {
  struct Mine {
    float4* d;
    const uint32_t* a;
    uint32_t b[2];
  } mine{&d, a, {b0, b1}};
  const auto execute = [](emulation::Lanes lanes) {
    float w[16][16], x[8][16];  // [row][k], [token][k]
    for (int lane = 0; lane < 32; ++lane) {
      const Mine& one = *static_cast<const Mine*>(lanes[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) put_pair<T>(&w[g + i % 2 * 8][2 * t + i / 2 * 8], one.a[i]);
      for (int i = 0; i < 2; ++i) put_pair<T>(&x[g][2 * t + 8 * i], one.b[i]);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const auto add = [&](float& sum, int row, int token) {
        float products = 0;
        for (int k = 0; k < 16; ++k) products += w[row][k] * x[token][k];
        sum += products;
      };
      float4& sum = *static_cast<const Mine*>(lanes[lane])->d;
      add(sum.x, g, 2 * t), add(sum.y, g, 2 * t + 1), add(sum.z, g + 8, 2 * t), add(sum.w, g + 8, 2 * t + 1);
    }
  };
  emulation::warp_collective(&mine, execute, "mma_16x8x16", line);
}

}  // namespace flute::cuda::ptx
