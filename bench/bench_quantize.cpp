// Quantizing and dequantizing on one thread. Bytes a second count the unquantized side: bf16 weights read by
// `quantize` and `kmeans`, values written by `dequantize`, fp32 values on either side of `convert`.
#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "flute/quantize.hpp"

namespace flute {
namespace {

constexpr int64_t kN = 1024, kK = 4096;

std::vector<std::byte> random_weight(DType dtype) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> values(static_cast<size_t>(kN * kK));
  for (float& value : values) value = normal(random);
  std::vector<std::byte> result(values.size() * dtype_size(dtype));
  convert_from_f32(values.data(), result.data(), dtype, values.size());
  return result;
}

RtnOptions options_for(const Codebook& codebook, const std::string& name, int64_t group_size) {
  RtnOptions options;
  options.group_size = group_size;
  options.max_magnitude = codebook_max_magnitude(codebook, name == "int");
  return options;
}

void quantize(benchmark::State& state, const std::string& name, int bits, int64_t group_size) {
  const Codebook codebook = named_codebook(name, bits);
  const RtnOptions options = options_for(codebook, name, group_size);
  const auto weight = random_weight(DType::kBF16);
  PackedMatrix target = allocate_packed(kN, kK, group_size, options.scale_dtype, codebook);
  for (auto _ : state) quantize_rtn_rows(weight.data(), DType::kBF16, 0, kN, codebook, options, target);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(weight.size()));
}

void dequantize(benchmark::State& state, int bits, DType dtype) {
  const Codebook codebook = nf_codebook(bits);
  const auto weight = random_weight(DType::kBF16);
  const PackedMatrix matrix =
      quantize_rtn(weight.data(), DType::kBF16, kN, kK, codebook, options_for(codebook, "nf", 64));
  std::vector<std::byte> out(static_cast<size_t>(kN * kK) * dtype_size(dtype));
  for (auto _ : state) dequantize_rows(matrix.view(), 0, kN, dtype, out.data());
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(out.size()));
}

void kmeans(benchmark::State& state, int bits) {
  const auto weight = random_weight(DType::kBF16);
  for (auto _ : state) {
    benchmark::DoNotOptimize(fit_kmeans_codebook(weight.data(), DType::kBF16, kN, kK, bits, 64));
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(weight.size()));
}

void convert_from(benchmark::State& state, DType dtype) {
  constexpr size_t kCount = 16384;
  const auto source = random_weight(DType::kF32);
  std::vector<std::byte> target(kCount * dtype_size(dtype));
  for (auto _ : state) {
    convert_from_f32(reinterpret_cast<const float*>(source.data()), target.data(), dtype, kCount);
    benchmark::DoNotOptimize(target.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kCount * sizeof(float)));
}

void convert_to(benchmark::State& state, DType dtype) {
  constexpr size_t kCount = 16384;
  const auto source = random_weight(dtype);
  std::vector<float> target(kCount);
  for (auto _ : state) {
    convert_to_f32(source.data(), dtype, target.data(), kCount);
    benchmark::DoNotOptimize(target.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kCount * sizeof(float)));
}

BENCHMARK_CAPTURE(quantize, nf2_g64, "nf", 2, 64);
BENCHMARK_CAPTURE(quantize, nf3_g64, "nf", 3, 64);
BENCHMARK_CAPTURE(quantize, nf4_g64, "nf", 4, 64);
BENCHMARK_CAPTURE(quantize, nf4_g32, "nf", 4, 32);
BENCHMARK_CAPTURE(quantize, nf4_channel, "nf", 4, -1);
BENCHMARK_CAPTURE(quantize, int4_g128, "int", 4, 128);
BENCHMARK_CAPTURE(quantize, fp4_g64, "fp", 4, 64);
BENCHMARK_CAPTURE(quantize, nf5_g64, "nf", 5, 64);
BENCHMARK_CAPTURE(quantize, nf6_g64, "nf", 6, 64);
BENCHMARK_CAPTURE(quantize, nf7_g64, "nf", 7, 64);
BENCHMARK_CAPTURE(quantize, nf8_g64, "nf", 8, 64);
BENCHMARK_CAPTURE(quantize, fp8_g64, "fp", 8, 64);
BENCHMARK_CAPTURE(dequantize, nf4_bf16, 4, DType::kBF16);
BENCHMARK_CAPTURE(dequantize, nf4_fp16, 4, DType::kF16);
BENCHMARK_CAPTURE(dequantize, nf4_fp32, 4, DType::kF32);
BENCHMARK_CAPTURE(dequantize, nf3_bf16, 3, DType::kBF16);
BENCHMARK_CAPTURE(dequantize, nf8_bf16, 8, DType::kBF16);
BENCHMARK_CAPTURE(kmeans, 2_bits, 2);
BENCHMARK_CAPTURE(kmeans, 4_bits, 4);
BENCHMARK_CAPTURE(kmeans, 8_bits, 8);
BENCHMARK_CAPTURE(convert_from, fp16, DType::kF16);
BENCHMARK_CAPTURE(convert_from, bf16, DType::kBF16);
BENCHMARK_CAPTURE(convert_to, fp16, DType::kF16);
BENCHMARK_CAPTURE(convert_to, bf16, DType::kBF16);

}  // namespace
}  // namespace flute
