// Any table will do: quantizes a matrix of few distinct values with a table fitted to it, with NF4, and with a table of
// one's own, and prints the error of the product for each.
//   c++ -std=c++20 quantize_and_multiply.cpp $(pkg-config --cflags --libs flute)
#include <cmath>
#include <cstdio>
#include <flute/flute.hpp>
#include <random>
#include <vector>

constexpr int64_t kN = 1024, kK = 2048;

// ||Y - Yq|| / ||Y|| of a product with `weight` and with its quantized form.
double relative_error(const std::vector<float>& weight, const flute::Codebook& codebook, flute::ThreadPool& threads) {
  flute::RtnOptions options;
  options.group_size = 64;
  options.max_magnitude = flute::codebook_max_magnitude(codebook, false);
  const flute::PackedMatrix packed =
      flute::quantize_rtn(weight.data(), flute::DType::kF32, kN, kK, codebook, options, &threads);
  const flute::PackedView view = packed.view();
  const flute::Matrix matrix = flute::Matrix::from_packed({}, {&view, 1}, {.threads = &threads});

  const std::vector<float> x(kK, 1.0f);
  std::vector<float> y(kN);
  flute::GemmArgs args;
  args.m = 1;
  args.x = x.data();
  args.y = y.data();
  flute::gemm(matrix, args, {&threads});

  double error = 0, norm = 0;
  for (int64_t n = 0; n < kN; ++n) {
    double exact = 0;
    for (int64_t k = 0; k < kK; ++k) exact += weight[n * kK + k];
    error += (y[n] - exact) * (y[n] - exact);
    norm += exact * exact;
  }
  return std::sqrt(error / norm);
}

int main() try {
  // Weights that gather around -1, 0 and 1: NF4, made for normally distributed ones, suits them badly.
  std::mt19937 random(1);
  std::normal_distribution<float> noise(0.0f, 0.03f);
  std::vector<float> weight(kN * kK);
  for (float& value : weight) value = static_cast<float>(static_cast<int>(random() % 3) - 1) + noise(random);

  flute::ThreadPool threads;
  const auto fitted = flute::fit_kmeans_codebook(weight.data(), flute::DType::kF32, kN, kK, 4, 64, &threads);
  const flute::Codebook ternary{2, 1, 1, {-1.0f, 0.0f, 0.0f, 1.0f}};
  std::printf("4 bits, NF4:          %.4f\n", relative_error(weight, flute::nf_codebook(4), threads));
  std::printf("4 bits, fitted table: %.4f\n", relative_error(weight, fitted, threads));
  std::printf("2 bits, -1 0 1:       %.4f\n", relative_error(weight, ternary, threads));
} catch (const flute::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
