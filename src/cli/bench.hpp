#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "flute/dtype.hpp"
#include "flute/packed.hpp"

namespace flute::cli {

/// What `flute bench` was asked for, on any device.
struct BenchOptions {
  std::string device = "cpu", codebook = "nf";
  std::vector<std::string> shapes = {"6144x4096", "4096x4096", "28672x4096", "4096x14336"};  // Llama-3-8B, fused
  std::vector<int64_t> tokens;
  std::vector<int> bits = {4, 3, 2};
  int64_t group_size = 64;
  DType dtype = DType::kF32;
  int threads = 0;
  bool json = false, plan = false;
};

struct BenchShape {
  int64_t n = 0, k = 0;
};

/// Throws UsageError.
BenchShape parse_shape(const std::string& text);

PackedMatrix random_matrix(const BenchShape& shape, const BenchOptions& options, int bits);

/// "shape" and "format" of a line of --json, m unless it is 0.
nlohmann::ordered_json bench_line(const BenchOptions& options, const BenchShape& shape, int64_t m, int bits);

/// `flute bench --device cuda`, or cuda:1.
int bench_cuda(const BenchOptions& options);

}  // namespace flute::cli
