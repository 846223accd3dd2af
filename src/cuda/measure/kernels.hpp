#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "flute/dtype.hpp"

namespace flute::cuda {

/// The floor: plain kernels that read `bytes` (a multiple of 16) once, launched the ordinary way. `variant` is one of
/// kReadVariants: they differ in how many loads a thread has under way and in how many blocks there are.
constexpr int kReadVariants = 4;
cudaError_t read_once(const void* data, size_t bytes, int variant, int sm_count, uint32_t* sink, cudaStream_t stream);

/// Writes the multiprocessors' clock at the moment, in MHz, to `mhz` on the device.
cudaError_t clock_rate(uint32_t* mhz, cudaStream_t stream);

/// The same seed gives the same values. Random bits: `bytes`, a multiple of 8.
cudaError_t fill_bits(void* out, size_t bytes, uint64_t seed, cudaStream_t stream);
/// `count` uniform values in [low, high) of fp16 or bf16.
cudaError_t fill_uniform(void* out, size_t count, DType dtype, float low, float high, uint64_t seed,
                         cudaStream_t stream);

}  // namespace flute::cuda
