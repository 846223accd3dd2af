// Multiplies on a CUDA device: a matrix of 4-bit codes with one token's activations, captured in a graph as an engine
// does it, and compared with the CPU's product.
//   c++ -std=c++20 multiply_on_device.cpp $(pkg-config --cflags --libs flute) -I/usr/local/cuda/include
//       -L/usr/local/cuda/lib64 -lcudart
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <flute/flute.hpp>
#include <random>
#include <stdexcept>
#include <vector>

constexpr int64_t kN = 4096, kK = 4096;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

int main() try {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<float> weight(kN * kK);
  for (float& value : weight) value = normal(random);
  flute::ThreadPool threads;
  flute::RtnOptions options;
  options.group_size = 64;
  const flute::PackedMatrix packed =
      flute::quantize_rtn(weight.data(), flute::DType::kF32, kN, kK, flute::nf_codebook(4), options, &threads);
  const flute::PackedView view = packed.view();
  const flute::Device gpu{flute::Device::Kind::kCuda, 0};
  const flute::Matrix matrix = flute::Matrix::from_packed(gpu, {&view, 1}, {.dtype = flute::DType::kF16});
  const flute::Matrix reference = flute::Matrix::from_packed({}, {&view, 1}, {.threads = &threads});

  std::vector<uint16_t> x(kK), y(kN), expected(kN);
  for (uint16_t& value : x) value = flute::f32_to_f16(50 * normal(random));
  void *x_there = nullptr, *y_there = nullptr, *workspace = nullptr;
  const size_t workspace_bytes = flute::gemm_workspace_bytes(matrix, 1, flute::DType::kF16);
  check(cudaMalloc(&x_there, kK * 2));
  check(cudaMalloc(&y_there, kN * 2));
  if (workspace_bytes > 0) check(cudaMalloc(&workspace, workspace_bytes));
  flute::workspace_init(gpu, workspace, workspace_bytes);
  check(cudaMemcpy(x_there, x.data(), kK * 2, cudaMemcpyHostToDevice));
  check(cudaDeviceSynchronize());

  flute::GemmArgs args;
  args.m = 1;
  args.x = x_there;
  args.y = y_there;
  args.dtype = flute::DType::kF16;
  flute::Execution execution;
  execution.workspace = workspace;
  execution.workspace_bytes = workspace_bytes;
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamCreate(&stream));
  execution.stream = stream;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  flute::gemm(matrix, args, execution);
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&exec, graph, 0));
  check(cudaGraphLaunch(exec, stream));
  check(cudaStreamSynchronize(stream));
  check(cudaMemcpy(y.data(), y_there, kN * 2, cudaMemcpyDeviceToHost));

  args.x = x.data();
  args.y = expected.data();
  flute::gemm(reference, args, {&threads});
  double difference = 0, norm = 0;
  for (int64_t n = 0; n < kN; ++n) {
    const double here = flute::f16_to_f32(expected[n]), there = flute::f16_to_f32(y[n]);
    difference += (there - here) * (there - here);
    norm += here * here;
  }
  std::printf("%.1f MB on the device; difference to the CPU: %.1e\n", 1e-6 * static_cast<double>(matrix.bytes()),
              std::sqrt(difference / norm));
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
