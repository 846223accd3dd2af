#pragma once
#include <cuda_runtime.h>

namespace flute::cuda::lab {

// The block of Llama-3-8B.
constexpr int kHidden = 4096, kHeads = 32, kKeyHeads = 8, kHead = 128, kInner = 14336;
constexpr int kQkv = (kHeads + 2 * kKeyHeads) * kHead;

// What lies between multiply `step` (0: q, k and v; 1: o; 2: gate and up; 3: down) and the next one, in fp16, `tokens`
// rows: something in attention's place, normalisation, silu(gate) * up, normalisation.
cudaError_t launch_between(int step, const void* y, void* x, int tokens, cudaStream_t stream);

}  // namespace flute::cuda::lab
