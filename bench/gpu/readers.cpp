// Times of the readers, and of the tensor-core instruction.
#include "readers.hpp"

#include <algorithm>
#include <cstdio>

#include "base/fail.hpp"
#include "cuda/measure/graph.hpp"
#include "lab.hpp"

namespace flute::cuda::lab {

std::string time_reader(Bench& bench, const Keys& keys) {
  const std::string mode = keys.at("read");
  const int per_sm = number(keys, "per_sm", 1), piece = number(keys, "piece", 0), stages = number(keys, "stages", 4);
  const auto bytes = static_cast<size_t>(number(keys, "bytes", 1 << 24));
  const size_t stride = (bytes + 4095) / 4096 * 4096;
  const size_t copies = std::min(bench.pool_bytes() / stride, kRotate / stride + 2);
  const int grid = bench.limits().sm_count * per_sm;
  const auto launch_one = [&](int i) {
    const uint8_t* data = bench.pool() + static_cast<size_t>(i) % copies * stride;
    check(mode == "plain"   ? read_plain(data, bytes, grid, stages, bench.sink(), bench.stream())
          : mode == "async" ? read_async(data, bytes, grid, stages, bench.sink(), bench.stream())
                            : read_bulk(data, bytes, grid, piece, stages, bench.sink(), bench.stream()),
          "read");
  };
  launch_one(0);
  const Times times = time_graph(bench.stream(), std::max(static_cast<int>(kRotate / bytes) + 1, 20), launch_one);
  return fmt::format(
      R"("set": "read", "mode": "{}", "per_sm": {}, "piece": {}, "stages": {}, "bytes": {}, "us": {:.3f}, )"
      R"("floor_us": {:.3f})",
      mode, per_sm, piece, stages, bytes, microseconds(times.median), microseconds(bench.floor(bytes).median));
}

// 48 steps in each block; activations of 512 KB.
std::string time_mixed(Bench& bench, const Keys& keys) {
  constexpr int kSteps = 48, kCommonTotal = 512 * 1024;
  const int cluster = number(keys, "mixed", 1), own = number(keys, "own", 24576), common = number(keys, "common", 0);
  const int blocks = bench.limits().sm_count / cluster * cluster;
  const auto launch_one = [&](int) {
    check(read_mixed(bench.pool(), bench.x(), blocks, own, common, kCommonTotal, kSteps, cluster, bench.stream()),
          "read");
  };
  launch_one(0);
  const double us = microseconds(time_graph(bench.stream(), 20, launch_one).median);
  return fmt::format(
      R"("set": "mixed", "cluster": {}, "own": {}, "common": {}, "blocks": {}, "us": {:.3f}, "own_gb_s": {:.0f}, )"
      R"("all_gb_s": {:.0f})",
      cluster, own, common, blocks, us, 1e-3 * kSteps * blocks * own / us,
      1e-3 * kSteps * blocks * (own + common) / us);
}

int run_mma() {
  constexpr int kCount = 1024;
  const int blocks = opened_device(0).limits.sm_count;
  const Array<long long> clocks(1);
  const Array<float> sink(1);
  const char* separator = "[\n";
  for (const int warps : {4, 8, 16}) {
    for (const int chains : {1, 2, 4, 8}) {
      for (int repeat = 0; repeat < 2; ++repeat) {
        check(mma_rate(blocks, warps, chains, kCount, clocks.data(), sink.data()), "mma");
        check(cudaDeviceSynchronize(), "mma");
      }
      long long host = 0;
      check(cudaMemcpy(&host, clocks.data(), sizeof(host), cudaMemcpyDeviceToHost), "mma");
      std::printf("%s{\"set\": \"mma\", \"warps\": %d, \"chains\": %d, \"clocks_per_mma_and_sm\": %.3f}", separator,
                  warps, chains, static_cast<double>(host) / kCount / chains / warps);
      separator = ",\n";
    }
  }
  std::printf("\n]\n");
  return 0;
}

}  // namespace flute::cuda::lab
