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

/// Uniform values in [-1, 1) of fp16 or bf16.
cudaError_t fill_random(void* out, size_t count, DType dtype, cudaStream_t stream);

}  // namespace flute::cuda
