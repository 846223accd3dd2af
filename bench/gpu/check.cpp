// The kernels against float64, with plans that nobody would make.
#include <algorithm>
#include <cstdio>
#include <initializer_list>
#include <iterator>
#include <random>
#include <set>
#include <vector>

#include "base/fail.hpp"
#include "cuda/measure/kernels.hpp"
#include "cuda/measure/reference.hpp"
#include "cuda/tiling.hpp"
#include "lab.hpp"

namespace flute::cuda::lab {
namespace {

/// How a case's call differs from the plainest.
struct Call {
  bool identity = false, bias = false;  // identity: a single 1 in each token
  int pad_x = 0, pad_y = 0, runs = 1;
};

/// Runs a case into NaN between guards. Throws, saying what is wrong; returns the relative error.
double check_case(const Case& one, const DeviceLimits& limits, const Call& call, uint64_t seed) {
  constexpr int64_t kGuard = 4096;
  const int m = one.shape.m, n = one.shape.n, k = one.shape.k, bits = one.format.bits,
            group_size = one.format.group_size;
  const DType dtype = one.dtype();
  DecodeArguments arguments = make_arguments(one, limits);
  const auto wrong = [&](const std::string& what) {
    fail(ErrorCode::kInternal, "WRONG {}: {}", what, describe(one, limits));
  };
  if (!arguments.plan.valid) wrong("no plan");
  const int64_t ldx = k + call.pad_x, ldy = n + call.pad_y, groups = one.groups(), tiled = tiled_groups(group_size, k);
  const auto count = [](int64_t a, int64_t b) { return static_cast<size_t>(a * b); };
  // All 16-bit values are of `dtype`.
  const Array<uint32_t> packed(count(n, k) / 32 * static_cast<size_t>(bits) / 2 * 2 + 2);
  const Array<uint8_t> codes(Bench::code_bytes(one));
  const Array<uint16_t> scales(count(n, groups)), tiled_scales(Bench::scale_bytes(one) / 2);
  const Array<uint16_t> codebooks(static_cast<size_t>(one.segments) << bits), bias(count(n, 1)), dense(count(n, k));
  const Array<uint16_t> plain_x(count(m, k)), x(count(m, ldx) + kGuard),
      y(count(m - 1, ldy) + count(n, 1) + 2 * kGuard);
  const Array<double> expected(count(m, n)), squares(count(m, n));
  const Array<uint64_t> first_bad(1);

  check(fill_bits(packed.data(), packed.bytes(), seed, nullptr), "codes");
  const auto fill = [&](const Array<uint16_t>& array, float limit, uint64_t which) {
    check(fill_uniform(array.data(), array.count(), dtype, -limit, limit, seed + which, nullptr), "fill");
  };
  fill(scales, 1.3f, 1);
  fill(codebooks, 1, 2);
  fill(bias, 4, 3);
  fill(plain_x, 1, 4);
  if (call.identity) {
    std::vector<uint16_t> host(plain_x.count());
    for (uint64_t token = 0; token < static_cast<uint64_t>(m); ++token) {
      store_from_f32(host.data(), dtype,
                     token * static_cast<uint64_t>(k) + (seed % 1009 + 37 * token) % static_cast<uint64_t>(k), 1);
    }
    check(cudaMemcpy(plain_x.data(), host.data(), plain_x.bytes(), cudaMemcpyHostToDevice), "x");
  }
  check(cudaMemset(x.data(), 0xff, x.bytes()), "x");  // NaN between the tokens and behind them
  check(cudaMemcpy2D(x.data(), count(ldx, 2), plain_x.data(), count(k, 2), count(k, 2), count(m, 1),
                     cudaMemcpyDeviceToDevice),
        "x");
  check(cudaMemset(first_bad.data(), 0xff, first_bad.bytes()), "scales");
  check(tile_codes(bits, packed.data(), n, k, codes.data(), nullptr), "codes");
  check(tile_scales(scales.data(), dtype, n, static_cast<int>(groups), static_cast<int>(tiled), dtype,
                    tiled_scales.data(), first_bad.data(), 0, nullptr),
        "scales");
  RowSegments segments{one.segments, {}};
  std::copy(std::begin(arguments.segment_row), std::end(arguments.segment_row), segments.row);
  const uint16_t* const given_bias = call.bias ? bias.data() : nullptr;
  reference_weights(packed.data(), bits, scales.data(), group_size, codebooks.data(), segments, dense.data(), n, k,
                    dtype);
  reference_multiply(dense.data(), x.data(), ldx, given_bias, expected.data(), squares.data(), m, n, k, dtype);
  arguments.codes = codes.data();
  arguments.scales = reinterpret_cast<const uint8_t*>(tiled_scales.data());
  arguments.codebooks = codebooks.data();
  arguments.bias = given_bias;
  arguments.x = reinterpret_cast<const uint8_t*>(x.data());
  arguments.y = y.data() + kGuard;
  arguments.ldx = ldx, arguments.ldy = ldy;

  std::vector<uint16_t> first, now(y.count());
  double error = 0;
  for (int run = 0; run < call.runs; ++run) {
    check(cudaMemset(y.data(), 0xff, y.bytes()), "y");
    launch(arguments, one, nullptr);
    check(cudaDeviceSynchronize(), "multiply");
    const Comparison result = compare(y.data(), kGuard, ldy, expected.data(), squares.data(), m, n, dtype);
    error = result.error();
    if (result.outside != 0) wrong("wrote beside y");
    if (result.not_finite != 0) wrong(fmt::format("{} outputs are not finite", result.not_finite));
    if (call.identity && !call.bias && result.difference != 0) wrong("identity differs");
    if (!(error <= promised_error(dtype, n))) wrong(fmt::format("relative error {:.3g}", error));
    check(cudaMemcpy(now.data(), y.data(), y.bytes(), cudaMemcpyDeviceToHost), "y");
    if (run > 0 && now != first) wrong("two runs differ");
    first = now;
  }
  return error;
}

constexpr int kGroupSizes[] = {64, 128, 256, -1, 32};

}  // namespace

int run_check(int draws, uint64_t seed, const DeviceLimits& limits) {
  std::mt19937_64 random(seed);
  const auto below = [&](int count) { return static_cast<int>(random() % static_cast<unsigned>(count)); };
  const auto pick = [&](std::initializer_list<int> list) { return list.begin()[below(static_cast<int>(list.size()))]; };
  double worst[2] = {};
  for (int i = 0; i < draws; ++i) {
    Case one;
    one.format = {pick({2, 3, 4}), kGroupSizes[below(5)], below(3) == 0};
    one.shape.m = pick({1, 2, 3, 4, 7, 8, 9, 13, 16, 17, 25, 32, 33, 48, 53, 64});
    const bool large = i % 16 == 0;
    one.shape.n = large ? pick({4096, 6144, 10240, 14336}) : 1 + below(2000);
    one.shape.k = large ? pick({3584, 4096, 8192, 14336}) : 32 * (1 + below(100));
    one.segments = one.shape.n >= 32 * kMaxSegments ? 1 + below(kMaxSegments) : 1;
    one.dependent = below(2) != 0;
    if (below(4) == 0) one.wish.rows = pick({1, 2, 3, 4, 6});
    if (below(4) == 0) one.wish.warps = pick({1, 4, 7, 8, 16});
    if (below(4) == 0) one.wish.blocks = pick({1, 2, 7});
    if (below(4) == 0) one.wish.depth = 1;
    if (!make_arguments(one, limits).plan.valid) one.wish = {};
    Call call;
    call.identity = i % 3 == 0;
    call.bias = !call.identity && below(3) == 0;
    call.pad_x = 8 * below(2) * below(9), call.pad_y = below(2) * below(40);
    call.runs = 3;
    const double error = check_case(one, limits, call, random());
    if (!call.identity) worst[one.format.bf16] = std::max(worst[one.format.bf16], error);
  }
  std::printf(
      "{\"checked\": %d, \"seed\": %llu, \"target\": %d, \"sm_count\": %d, \"worst_fp16\": %.3g, \"worst_bf16\": "
      "%.3g}\n",
      draws, static_cast<unsigned long long>(seed), kernel_target(0), limits.sm_count, worst[0], worst[1]);
  return 0;
}

// Every kernel that is built, found by asking for each combination of what they are compiled for. Shapes are the
// smallest in which everything happens: two blocks; two passes, the second with a row group less; steps enough that
// every warp fills both of its stages again, with a unit that K ends in; and now and then two segments.
int run_instances(int part, int parts, const DeviceLimits& limits) {
  constexpr int kWarps = 3, kBlocks = 2, kSteps = 2 * kWarps + 1;
  std::set<DecodeKernel> found;
  int index = 0, run = 0;
  const auto check_instance = [&](const Format& format, int tiles_m, int rows, int depth) {
    DecodePlan wanted;
    wanted.valid = true;
    wanted.tiles_m = tiles_m, wanted.rows = rows, wanted.depth = depth;
    const DecodeKernel kernel = find_decode_kernel(wanted, format);
    if (kernel == nullptr || !found.insert(kernel).second || index++ % parts != part - 1) return;
    Case one;
    one.format = format;
    const int longest = rows == 1 ? 2 : 2 * rows - 1;  // row groups of the first block: two passes
    one.shape.m = 8 * tiles_m - index % (tiles_m == 1 ? 8 : 4 * tiles_m);
    one.shape.n = kGroupRows * (kBlocks * longest - 1) - 5;
    one.shape.k = kUnitK * depth * kSteps - 32;
    one.segments = one.shape.n >= 96 ? 1 + index % 2 : 1;
    one.wish = {rows, kWarps, kBlocks, depth};
    const DecodePlan plan = make_arguments(one, limits).plan;
    if (find_decode_kernel(plan, format) != kernel) {
      fail(ErrorCode::kInternal, "no plan for {} tiles, {} rows, {} units: {}", tiles_m, rows, depth,
           describe(one, limits));
    }
    Call call;
    call.bias = index % 3 == 0;
    call.pad_y = index % 5;
    (void)check_case(one, limits, call, static_cast<uint64_t>(index));
    ++run;
  };
  for (const int bits : {2, 3, 4}) {
    for (const bool bf16 : {false, true}) {
      for (const int tiles_m : {1, 2, 4, 8}) {
        for (int rows = 1; rows <= max_rows(tiles_m); ++rows) {
          for (const int depth : {1, 2}) {
            check_instance({bits, kGroupSizes[rows % 4], bf16}, tiles_m, rows, depth);
            check_instance({bits, 32, bf16}, tiles_m, rows, depth);
          }
        }
      }
    }
  }
  std::printf("{\"instances\": %d, \"of\": %zu, \"target\": %d}\n", run, found.size(), kernel_target(0));
  return 0;
}

}  // namespace flute::cuda::lab
