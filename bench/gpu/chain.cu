// Kernels of another maker, as between the multiplies of a block: launched the ordinary way, letting nobody start
// early.
#include <cuda_fp16.h>

#include "chain.hpp"

namespace flute::cuda::lab {
namespace {

constexpr int kThreads = 256, kNormThreads = 1024;

// In attention's place: out = q * k + v, element by element, heads in groups.
__global__ void mix_heads(const __half* qkv, __half* out, int tokens) {
  const int i = blockIdx.x * kThreads + threadIdx.x, token = i / kHidden, column = i % kHidden;
  if (token >= tokens) return;
  const __half* const row = qkv + static_cast<size_t>(token) * kQkv;
  const int shared = column / kHead / (kHeads / kKeyHeads) * kHead + column % kHead;
  const float k = __half2float(row[kHeads * kHead + shared]),
              v = __half2float(row[(kHeads + kKeyHeads) * kHead + shared]);
  out[i] = __float2half(__half2float(row[column]) * k + v);
}

// out = in / rms(in): a block a token.
__global__ void __launch_bounds__(kNormThreads) normalize(const __half* in, __half* out) {
  __shared__ float parts[kNormThreads / 32];
  const size_t at = static_cast<size_t>(blockIdx.x) * kHidden + threadIdx.x;
  float values[kHidden / kNormThreads], sum = 0;
  for (int i = 0; i < kHidden / kNormThreads; ++i) {
    values[i] = __half2float(in[at + i * kNormThreads]);
    sum += values[i] * values[i];
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = parts[threadIdx.x % 32];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  const float scale = rsqrtf(sum / kHidden + 1e-5f);
  for (int i = 0; i < kHidden / kNormThreads; ++i) out[at + i * kNormThreads] = __float2half(values[i] * scale);
}

// out = silu(gate) * up.
__global__ void gate_up(const __half* in, __half* out, int tokens) {
  const int i = blockIdx.x * kThreads + threadIdx.x, token = i / kInner, column = i % kInner;
  if (token >= tokens) return;
  const __half* const row = in + static_cast<size_t>(token) * 2 * kInner;
  const float gate = __half2float(row[column]), up = __half2float(row[kInner + column]);
  out[i] = __float2half(gate / (1 + __expf(-gate)) * up);
}

}  // namespace

cudaError_t launch_between(int step, const void* from, void* to, int tokens, cudaStream_t stream) {
  const auto* const y = static_cast<const __half*>(from);
  auto* const x = static_cast<__half*>(to);
  const auto blocks = [tokens](int columns) { return (tokens * columns + kThreads - 1) / kThreads; };
  if (step == 0) mix_heads<<<blocks(kHidden), kThreads, 0, stream>>>(y, x, tokens);
  if (step == 1 || step == 3) normalize<<<tokens, kNormThreads, 0, stream>>>(y, x);
  if (step == 2) gate_up<<<blocks(kInner), kThreads, 0, stream>>>(y, x, tokens);
  return cudaGetLastError();
}

}  // namespace flute::cuda::lab
