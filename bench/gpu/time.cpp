// Times of the multiply beside the floor and cuBLAS.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <thread>
#include <tuple>

#include "base/fail.hpp"
#include "cuda/measure/graph.hpp"
#include "cuda/measure/kernels.hpp"
#include "lab.hpp"

namespace flute::cuda::lab {
namespace {

constexpr size_t kPool = size_t{1100} << 20, kDensePool = size_t{2000} << 20, kPage = 4096;

size_t to_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

/// Launches in a graph: so many that all copies are read, and that beginning and end do not count; with many tokens,
/// where these do not and the cache does not matter, as many of them as take about 10 ms, or a few.
int launches(size_t bytes, const Shape& shape = {}) {
  constexpr double kFlops = 600e12, kEnough = 10e-3;
  const int rotation = static_cast<int>(kRotate / bytes) + 1;
  if (shape.m < 512) return std::max(rotation, bytes > (size_t{40} << 20) ? 20 : 40);
  const double seconds = 2.0 * shape.m * shape.n * shape.k / kFlops;
  return std::clamp(static_cast<int>(kEnough / seconds), 6, std::max(6, rotation));
}

}  // namespace

Bench::Bench(const DeviceLimits& limits)
    : limits_(limits),
      pool_(kPool),
      dense_(kDensePool / 2),
      scales_(size_t{64} << 20),
      x_(size_t{160} << 20),
      y_(size_t{300} << 20),
      sink_(1),
      cublas_(stream_.get()) {
  check(fill_bits(pool_.data(), pool_.bytes(), 11, stream()), "fill");
  check(fill_uniform(dense_.data(), dense_.count(), DType::kF16, -0.1f, 0.1f, 12, stream()), "fill");
  check(fill_uniform(scales_.data(), scales_.count(), DType::kF16, 0.002f, 0.02f, 13, stream()), "fill");
  check(fill_uniform(x_.data(), x_.count(), DType::kF16, -1, 1, 14, stream()), "fill");
  stream_.wait();
  if (!cublas_.found()) std::fprintf(stderr, "libcublas not found: no cuBLAS times\n");
}

size_t Bench::code_bytes(const Case& one) {
  const auto row_groups = static_cast<size_t>((one.shape.n + kGroupRows - 1) / kGroupRows);
  return row_groups * units_along_k(one.shape.k) * unit_bytes(one.format.bits);
}

size_t Bench::scale_bytes(const Case& one) {
  const auto row_groups = static_cast<size_t>((one.shape.n + kGroupRows - 1) / kGroupRows);
  return row_groups * tiled_groups(one.format.group_size, one.shape.k) * kScaleBytes;
}

size_t Bench::bytes(const Case& one) {
  return (code_bytes(one) + scale_bytes(one) + (size_t{2} << one.format.bits)) / 16 * 16;
}

Times Bench::floor(size_t bytes) {
  if (floors_.count(bytes) != 0) return floors_[bytes];
  const size_t stride = to_pages(bytes), copies = std::min(kPool / stride, kRotate / stride + 2);
  Times best;
  for (int variant = 0; variant < kReadVariants; ++variant) {
    const Times times = time_graph(stream(), launches(bytes), [&](int i) {
      const uint8_t* data = pool() + static_cast<size_t>(i) % copies * stride;
      check(read_once(data, bytes, variant, limits_.sm_count, sink_.data(), stream()), "floor");
    });
    if (best.median == 0 || times.median < best.median) best = times;
  }
  return floors_[bytes] = best;
}

Graph Bench::dense_graph(int m, int n, int k) {
  const size_t count = static_cast<size_t>(n) * static_cast<size_t>(k);
  const size_t copies = std::min(dense_.count() / count, kRotate / 2 / count + 2);
  const auto launch_one = [&](int i) {
    cublas_.multiply(dense_.data() + static_cast<size_t>(i) % copies * count, x(), y(), m, n, k, DType::kF16);
  };
  launch_one(0);  // what cuBLAS sets up in its first call is no part of a graph
  stream_.wait();
  return {stream(), launches(2 * count, {.m = m, .n = n, .k = k}), launch_one};
}

Times Bench::dense(int m, int n, int k) {
  if (!cublas_.found()) return {};
  const std::string key = fmt::format("{},{},{}", m, n, k);
  if (dense_times_.count(key) != 0) return dense_times_[key];
  const Graph graph = dense_graph(m, n, k);
  return dense_times_[key] = time_by_turns({&graph}).front();
}

double Bench::sustained_dense(int m, int n, int k) {
  if (!cublas_.found()) return 0;
  const std::string key = fmt::format("{},{},{}", m, n, k);
  if (sustained_dense_.count(key) != 0) return sustained_dense_[key];
  return sustained_dense_[key] = dense_graph(m, n, k).sustained();
}

MultiplyArguments Bench::arguments(const Case& one, int copy) const {
  const size_t code_stride = to_pages(code_bytes(one)), scale_stride = to_pages(scale_bytes(one));
  const size_t copies =
      std::min({pool_bytes() / code_stride, scale_pool_bytes() / scale_stride, kRotate / code_stride + 2});
  const auto elements = [&](int columns) { return static_cast<size_t>(one.shape.m) * static_cast<size_t>(columns); };
  if (copies == 0 || elements(one.shape.k) > x_.count() || elements(one.shape.n) > y_.count()) {
    fail(ErrorCode::kInternal, "too little memory for {}", describe(one, limits_));
  }
  const size_t at = static_cast<size_t>(copy) % copies;
  MultiplyArguments arguments = make_arguments(one);
  arguments.codes = pool() + at * code_stride;
  arguments.scales = scale_pool() + at * scale_stride;
  arguments.codebooks = dense_.data();
  arguments.x = reinterpret_cast<const uint8_t*>(x());
  arguments.y = y();
  return arguments;
}

Graph Bench::graph(const Case& one) {
  const MultiplyPlan plan = plan_of(one, limits_);
  launch(plan, arguments(one), one, stream());  // loads the kernel, which a captured call could not
  return {stream(), launches(code_bytes(one), one.shape),
          [&](int i) { launch(plan, arguments(one, i), one, stream()); }};
}

Measured Bench::measure(const Case& one) {
  const auto [m, n, k] = std::tuple{one.shape.m, one.shape.n, one.shape.k};
  Measured measured;
  const Graph ours = graph(one);
  if (one.by_turns && cublas_.found()) {
    const Graph others = dense_graph(m, n, k);
    const std::vector<Times> times = time_by_turns({&ours, &others});
    measured.ours = times[0], measured.dense = times[1];
    measured.clock = clock();
  } else {
    measured.ours = time_by_turns({&ours}).front();
    measured.clock = clock();
    measured.dense = dense(m, n, k);
  }
  measured.floor = floor(bytes(one));
  if (one.sustained) measured.sustained = ours.sustained(), measured.sustained_dense = sustained_dense(m, n, k);
  return measured;
}

uint32_t Bench::clock() {
  uint32_t mhz = 0;
  check(clock_rate(sink(), stream()), "clock");
  check(cudaMemcpyAsync(&mhz, sink(), sizeof mhz, cudaMemcpyDeviceToHost, stream()), "clock");
  stream_.wait();
  return mhz;
}

void Bench::once(const Case& one) {
  for (int i = 0; i < 3; ++i) {
    launch(plan_of(one, limits_), arguments(one, i), one, stream());
    stream_.wait();
  }
}

int run_once(const Case& one, const DeviceLimits& limits) {
  Bench(limits).once(one);
  return 0;
}

namespace {

const char* family_name(Family family) {
  return family == Family::kDecode ? "decode" : family == Family::kPrefill ? "prefill" : "prefill_mma";
}

std::string time_case(Bench& bench, const Case& one) {
  const MultiplyPlan chosen = plan_of(one, bench.limits());
  if (!chosen.valid()) return "\"set\": \"no plan\"";
  // Random weights take so much power that the card lowers its clock after some 10 ms, and keeps it low for the cases
  // that follow. So each begins after a rest; with rest=0 the figures are those of a card that is always busy.
  std::this_thread::sleep_for(std::chrono::milliseconds(one.rest));
  const Measured measured = bench.measure(one);
  const bool decode = chosen.family == Family::kDecode;
  std::string text =
      fmt::format(R"("set": "{}", "dtype": "{}", "bits": {}, "group": {}, "m": {}, "n": {}, "k": {}, "dependent": {}, )"
                  R"("segments": {}, "family": "{}", )",
                  one.label, dtype_name(one.dtype()), one.format.bits, one.format.group_size, one.shape.m, one.shape.n,
                  one.shape.k, one.dependent ? 1 : 0, one.segments, family_name(chosen.family));
  if (decode) {
    const DecodePlan& plan = chosen.decode;
    text += fmt::format(R"("warps": {}, "rows": {}, "blocks": {}, "depth": {}, )", plan.warps(), plan.rows,
                        plan.deal.blocks, plan.depth);
  }
  text += fmt::format(
      R"("plan": "{}", "us": {:.3f}, "low_us": {:.3f}, "high_us": {:.3f}, "floor_us": {:.3f}, "cublas_us": {:.3f}, )"
      R"("by_turns": {}, "bytes": {}, "mhz": {})",
      plan_text(one, bench.limits()), microseconds(measured.ours.median), microseconds(measured.ours.low),
      microseconds(measured.ours.high), microseconds(measured.floor.median), microseconds(measured.dense.median),
      one.by_turns ? 1 : 0, Bench::bytes(one), measured.clock);
  if (one.sustained) {
    text += fmt::format(R"(, "sustained_us": {:.3f}, "cublas_sustained_us": {:.3f})", microseconds(measured.sustained),
                        microseconds(measured.sustained_dense));
  }
  return text;
}

}  // namespace

int run_time(const char* file, const DeviceLimits& limits) {
  std::ifstream in(file);
  if (!in) fail(ErrorCode::kIo, "{}: cannot be read", file);
  Bench bench(limits);
  const char* separator = "[\n";
  for (std::string line; std::getline(in, line);) {
    const Keys keys = parse(line);
    if (keys.empty()) continue;
    std::string result;
    try {
      result = keys.count("mixed") != 0   ? time_mixed(bench, keys)
               : keys.count("read") != 0  ? time_reader(bench, keys)
               : keys.count("chain") != 0 ? time_chain(bench, keys)
                                          : time_case(bench, to_case(keys));
    } catch (const Error& error) {  // what was measured before is worth keeping
      std::fprintf(stderr, "%s: %s\n", line.c_str(), error.what());
      result = fmt::format(R"("set": "failed", "case": "{}")", line);
    }
    std::printf("%s{%s}", separator, result.c_str());
    std::fflush(stdout);
    separator = ",\n";
  }
  std::printf("\n]\n");
  return 0;
}

}  // namespace flute::cuda::lab
