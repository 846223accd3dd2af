#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "flute/dtype.hpp"

namespace flute {

/// Uniform values in [-1, 1): out[count] of `dtype`, fp16 or bf16, on the default stream.
void fill_uniform(void* out, DType dtype, int64_t count, uint64_t seed);

/// Keeps the stream busy for some microseconds, then copies `count` 16-bit values.
void slow_copy(const void* from, void* to, int64_t count, cudaStream_t stream);

}  // namespace flute
