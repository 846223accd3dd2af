#include "cuda/measure/reference.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>

#include "cuda/device.hpp"

namespace flute::cuda {
namespace {

constexpr int kTile = 16;

__device__ float load(const void* data, DType dtype, int64_t index) {
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return dtype == DType::kF16 ? __half2float(__ushort_as_half(bits)) : __uint_as_float(uint32_t{bits} << 16);
}

__device__ uint16_t rounded(float value, DType dtype) {
  return dtype == DType::kF16 ? __half_as_ushort(__float2half_rn(value))
                              : __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

__global__ void weights_kernel(const uint32_t* packed, int bits, const void* scales, int group_size, int64_t groups,
                               const void* codebooks, RowSegments segments, uint16_t* w, int64_t n, int64_t k,
                               DType dtype) {
  for (int64_t i = blockIdx.x * 256ll + threadIdx.x; i < n * k; i += gridDim.x * 256ll) {
    const int64_t row = i / k, column = i % k, bit = column * bits;
    const uint32_t* const words = packed + row * (k / 32 * bits) + bit / 32;
    uint32_t code = words[0] >> bit % 32;
    if (bit % 32 + bits > 32) code |= words[1] << (32 - bit % 32);
    code &= (1u << bits) - 1;
    int s = 0;
    while (s + 1 < segments.count && segments.row[s + 1] <= row) ++s;
    const float value = load(codebooks, dtype, (int64_t{s} << bits) + code);
    w[i] = rounded(value * load(scales, dtype, row * groups + (group_size < 0 ? 0 : column / group_size)), dtype);
  }
}

// A tile of 16 tokens x 16 rows, k by 16.
__global__ void reference_kernel(const void* w, const void* x, int64_t ldx, const void* bias, double* y,
                                 double* squares, int64_t m, int64_t n, int64_t k, DType dtype) {
  __shared__ double ws[kTile][kTile + 1], xs[kTile][kTile + 1];
  const int64_t row = blockIdx.x * int64_t{kTile} + threadIdx.x, token = blockIdx.y * int64_t{kTile} + threadIdx.y;
  const int64_t w_row = blockIdx.x * int64_t{kTile} + threadIdx.y;
  double sum = 0, square = 0;
  for (int64_t begin = 0; begin < k; begin += kTile) {
    const int64_t at = begin + threadIdx.x;
    ws[threadIdx.y][threadIdx.x] = w_row < n ? load(w, dtype, w_row * k + at) : 0;
    xs[threadIdx.y][threadIdx.x] = token < m ? load(x, dtype, token * ldx + at) : 0;
    __syncthreads();
    for (int i = 0; i < kTile; ++i) {
      const double term = ws[threadIdx.x][i] * xs[threadIdx.y][i];
      sum += term;
      square += term * term;
    }
    __syncthreads();
  }
  if (row >= n || token >= m) return;
  if (bias != nullptr) sum += load(bias, dtype, row);
  y[token * n + row] = sum;
  squares[token * n + row] = square;
}

__device__ double block_sum(double value) {
  __shared__ double parts[8];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(~0u, value, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  for (int i = 0; i < 8; ++i) value += parts[i];
  return value;
}

__global__ void compare_kernel(const uint16_t* buffer, int64_t guard, int64_t ldy, int64_t count, const double* y,
                               const double* squares, int64_t m, int64_t n, DType dtype, Comparison* result) {
  double difference = 0, norm = 0, square = 0;
  for (int64_t i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
    const int64_t at = i - guard, token = at / ldy, row = at % ldy;
    if (at < 0 || token >= m || row >= n) {
      if (buffer[i] != 0xffff) atomicAdd(&result->outside, 1ull);
      continue;
    }
    const double value = load(buffer, dtype, i), expected = y[token * n + row];
    if (!isfinite(value)) atomicAdd(&result->not_finite, 1ull);
    difference += (value - expected) * (value - expected);
    norm += expected * expected;
    square += squares[token * n + row];
  }
  difference = block_sum(difference);
  norm = block_sum(norm);
  square = block_sum(square);
  if (threadIdx.x != 0) return;
  atomicAdd(&result->difference, difference);
  atomicAdd(&result->norm, norm);
  atomicAdd(&result->squares, square);
}

}  // namespace

void reference_weights(const uint32_t* packed, int bits, const void* scales, int group_size, const void* codebooks,
                       const RowSegments& segments, void* w, int64_t n, int64_t k, DType dtype) {
  const int64_t groups = group_size < 0 ? 1 : (k + group_size - 1) / group_size;
  weights_kernel<<<1024, 256>>>(packed, bits, scales, group_size, groups, codebooks, segments,
                                static_cast<uint16_t*>(w), n, k, dtype);
  check(cudaGetLastError(), "reference");
}

void reference_multiply(const void* w, const void* x, int64_t ldx, const void* bias, double* y, double* squares,
                        int64_t m, int64_t n, int64_t k, DType dtype) {
  const dim3 grid(static_cast<unsigned>((n + kTile - 1) / kTile), static_cast<unsigned>((m + kTile - 1) / kTile));
  reference_kernel<<<grid, dim3(kTile, kTile)>>>(w, x, ldx, bias, y, squares, m, n, k, dtype);
  check(cudaGetLastError(), "reference");
}

double Comparison::error() const { return std::sqrt(difference / std::max(norm, squares)); }

Comparison compare(const void* buffer, int64_t guard, int64_t ldy, const double* y, const double* squares, int64_t m,
                   int64_t n, DType dtype) {
  Comparison comparison;
  const DeviceBuffer result(sizeof(comparison));
  check(cudaMemcpy(result.data(), &comparison, sizeof(comparison), cudaMemcpyHostToDevice), "compare");
  const int64_t count = 2 * guard + (m - 1) * ldy + n;
  compare_kernel<<<512, 256>>>(static_cast<const uint16_t*>(buffer), guard, ldy, count, y, squares, m, n, dtype,
                               reinterpret_cast<Comparison*>(result.data()));
  check(cudaGetLastError(), "compare");
  check(cudaMemcpy(&comparison, result.data(), sizeof(comparison), cudaMemcpyDeviceToHost), "compare");
  return comparison;
}

double promised_error(DType dtype, int64_t n) {
  const double promise = dtype == DType::kF16 ? 5e-4 : 4e-3;
  return n >= 64 ? promise : promise * (1 + 2 / std::sqrt(static_cast<double>(n)));
}

}  // namespace flute::cuda
