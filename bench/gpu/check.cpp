// The kernels against float64, with plans that nobody would make.
#include <algorithm>
#include <cstdio>
#include <initializer_list>
#include <iterator>
#include <random>
#include <set>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/fail.hpp"
#include "cuda/decode/decode.hpp"
#include "cuda/measure/kernels.hpp"
#include "cuda/measure/reference.hpp"
#include "cuda/prefill/prefill.hpp"
#include "cuda/prefill_mma/prefill_mma.hpp"
#include "cuda/tiling.hpp"
#include "lab.hpp"
#include "shapes.hpp"

namespace flute::cuda::lab {
namespace {

constexpr int64_t kGuard = 4096;  // elements before and behind y

size_t count(int64_t a, int64_t b = 1) { return static_cast<size_t>(a * b); }

/// How a problem's call differs from the plainest.
struct Call {
  bool identity = false, bias = false;  // identity: a single 1 in each token
  int pad_x = 0, pad_y = 0;
};

/// Random weights and activations, and their product in float64. All 16-bit values are of the case's dtype.
class Problem {
 public:
  Problem(const Case& one, const Call& call, uint64_t seed);

  /// Runs the first one.shape.m tokens `runs` times into NaN between guards. Throws, saying what is wrong; returns the
  /// relative error. `one` differs from the case that the problem was made for in m and plan alone.
  double check(const Case& one, const DeviceLimits& limits, int runs) const;

 private:
  void fill(const Array<uint16_t>& array, float limit, uint64_t seed) const {
    cuda::check(fill_uniform(array.data(), array.count(), dtype_, -limit, limit, seed, nullptr), "fill");
  }
  const uint16_t* bias() const { return call_.bias ? bias_.data() : nullptr; }

  Call call_;
  DType dtype_;
  int64_t ldx_, ldy_;
  Array<uint8_t> codes_;
  Array<uint16_t> scales_, codebooks_, bias_, x_;
  Array<double> expected_, squares_;
};

Problem::Problem(const Case& one, const Call& call, uint64_t seed)
    : call_(call),
      dtype_(one.dtype()),
      ldx_(one.shape.k + call.pad_x),
      ldy_(one.shape.n + call.pad_y),
      codes_(Bench::code_bytes(one) + kReadBeyond),
      scales_((Bench::scale_bytes(one) + kReadBeyond) / 2),
      codebooks_(count(one.segments) << one.format.bits),
      bias_(count(one.shape.n)),
      x_(count(one.shape.m, ldx_) + count(kGuard)),
      expected_(count(one.shape.m, one.shape.n)),
      squares_(count(one.shape.m, one.shape.n)) {
  const int m = one.shape.m, n = one.shape.n, k = one.shape.k, bits = one.format.bits;
  const int group_size = one.format.group_size, groups = one.groups(), tiled = tiled_groups(group_size, k);
  const Array<uint32_t> packed(count(n, k) / 32 * count(bits) / 2 * 2 + 2);
  const Array<uint16_t> scales(count(n, groups)), weights(count(n, k)), x(count(m, k));
  const Array<uint64_t> first_bad(1);
  cuda::check(fill_bits(packed.data(), packed.bytes(), seed, nullptr), "codes");
  fill(scales, 1.3f, seed + 1);
  fill(codebooks_, 1, seed + 2);
  fill(bias_, 4, seed + 3);
  fill(x, 1, seed + 4);
  if (call.identity) {
    std::vector<uint16_t> host(x.count());
    for (int token = 0; token < m; ++token) {
      const int column = static_cast<int>((seed % 1009 + 37 * count(token)) % count(k));
      store_from_f32(host.data(), dtype_, count(token, k) + count(column), 1);
    }
    cuda::check(cudaMemcpy(x.data(), host.data(), x.bytes(), cudaMemcpyHostToDevice), "x");
  }
  cuda::check(cudaMemset(x_.data(), 0xff, x_.bytes()), "x");  // NaN between the tokens and behind them
  cuda::check(
      cudaMemcpy2D(x_.data(), count(ldx_, 2), x.data(), count(k, 2), count(k, 2), count(m), cudaMemcpyDeviceToDevice),
      "x");
  cuda::check(cudaMemset(first_bad.data(), 0xff, first_bad.bytes()), "scales");
  // Kernels read a little beyond both, and drop what they read.
  cuda::check(cudaMemset(codes_.data(), 0xff, codes_.bytes()), "codes");
  cuda::check(cudaMemset(scales_.data(), 0xff, scales_.bytes()), "scales");
  cuda::check(tile_codes(bits, packed.data(), {n, 0, n}, k, codes_.data(), nullptr), "codes");
  cuda::check(tile_scales(scales.data(), dtype_, {n, 0, n}, groups, tiled, dtype_, scales_.data(), first_bad.data(), 0,
                          nullptr),
              "scales");
  RowSegments segments{one.segments, {}};
  const Shape shape = shape_of(one);
  std::copy(std::begin(shape.segment_row), std::end(shape.segment_row), segments.row);
  reference_weights(packed.data(), bits, scales.data(), group_size, codebooks_.data(), segments, weights.data(), n, k,
                    dtype_);
  reference_multiply(weights.data(), x_.data(), ldx_, bias(), expected_.data(), squares_.data(), m, n, k, dtype_);
  cuda::check(cudaDeviceSynchronize(), "reference");
}

double Problem::check(const Case& one, const DeviceLimits& limits, int runs) const {
  const auto wrong = [&](const std::string& what) {
    fail(ErrorCode::kInternal, "WRONG {}: {}", what, describe(one, limits));
  };
  MultiplyArguments arguments = make_arguments(one);
  const MultiplyPlan plan = plan_of(one, limits);
  if (!plan.valid()) wrong("no plan");
  const int m = one.shape.m, n = one.shape.n;
  const Array<uint16_t> y(count(m - 1, ldy_) + count(n) + count(2 * kGuard));
  arguments.codes = codes_.data();
  arguments.scales = reinterpret_cast<const uint8_t*>(scales_.data());
  arguments.codebooks = codebooks_.data();
  arguments.bias = bias();
  arguments.x = reinterpret_cast<const uint8_t*>(x_.data());
  arguments.y = y.data() + kGuard;
  arguments.ldx = ldx_, arguments.ldy = ldy_;

  std::vector<uint16_t> first, now(runs > 1 ? y.count() : 0);
  double error = 0;
  for (int run = 0; run < runs; ++run) {
    cuda::check(cudaMemset(y.data(), 0xff, y.bytes()), "y");
    launch(plan, arguments, one, nullptr);
    cuda::check(cudaDeviceSynchronize(), "multiply");
    const Comparison result = compare(y.data(), kGuard, ldy_, expected_.data(), squares_.data(), m, n, dtype_);
    error = result.error();
    if (result.outside != 0) wrong("wrote beside y");
    if (result.not_finite != 0) wrong(fmt::format("{} outputs are not finite", result.not_finite));
    if (call_.identity && !call_.bias && result.difference != 0) wrong("identity differs");
    if (!(error <= promised_error(dtype_, n))) wrong(fmt::format("relative error {:.3g}", error));
    if (runs == 1) break;
    cuda::check(cudaMemcpy(now.data(), y.data(), y.bytes(), cudaMemcpyDeviceToHost), "y");
    if (run > 0 && now != first) wrong("two runs differ");
    first = now;
  }
  return error;
}

/// The worst errors by dtype.
struct Worst {
  void add(const Case& one, double error) {
    double& worst = one.format.bf16 ? bf16 : fp16;
    worst = std::max(worst, error);
  }
  double fp16 = 0, bf16 = 0;
};

constexpr int kGroupSizes[] = {64, 128, 256, -1, 32};

}  // namespace

int run_check(int draws, uint64_t seed, const DeviceLimits& limits) {
  std::mt19937_64 random(seed);
  const auto below = [&](int count) { return static_cast<int>(random() % static_cast<unsigned>(count)); };
  const auto pick = [&](std::initializer_list<int> list) { return list.begin()[below(static_cast<int>(list.size()))]; };
  Worst worst;
  for (int i = 0; i < draws; ++i) {
    Case one;
    one.format = {pick({2, 3, 4}), kGroupSizes[below(5)], below(3) == 0};
    const bool many = i % 2 != 0;
    one.shape.m = many ? pick({1, 40, 64, 65, 100, 128, 129, 200, 255, 256, 257, 300, 511, 600})
                       : pick({1, 2, 3, 4, 7, 8, 9, 13, 16, 17, 25, 32, 33, 48, 53, 64});
    const bool large = i % 16 == 0;
    one.shape.n = large ? pick({4096, 6144, 10240, 14336}) : 1 + below(2000);
    one.shape.k = large ? pick({3584, 4096, 8192, 14336}) : 32 * (1 + below(100));
    one.segments = one.shape.n >= 32 * kMaxSegments ? 1 + below(kMaxSegments) : 1;
    one.dependent = below(2) != 0;
    if (below(4) == 0) one.wish.rows = pick({1, 2, 3, 4, 5, 6});
    if (below(4) == 0) one.wish.warps = pick({1, 4, 7, 8, 16});
    if (below(4) == 0) one.wish.blocks = pick({1, 2, 7});
    if (below(3) == 0) one.wish.depth = pick({1, 2});
    if (below(3) == 0) one.wish.row_warps = pick({1, 2, 3, 4});
    if (many) {
      one.family = limits.wgmma && i % 4 != 1 ? 2 : 3;
      if (below(4) != 0) one.wish.tile = 1 + below(one.family == 2 ? kPrefillTileCount : kPrefillMmaTileCount);
      if (below(2) == 0) one.wish.split = 1 + below(kMostSplit);
      if (below(2) == 0) one.wish.blocks = std::max(1, one.wish.split) * (1 + below(3));
    }
    if (!plan_of(one, limits).valid()) one.wish = {};
    Call call;
    call.identity = i % 3 == 0;
    call.bias = !call.identity && below(3) == 0;
    call.pad_x = 8 * below(2) * below(9), call.pad_y = below(2) * below(40);
    const double error = Problem(one, call, random()).check(one, limits, 3);
    if (!call.identity) worst.add(one, error);
  }
  std::printf(
      "{\"checked\": %d, \"seed\": %llu, \"target\": %d, \"sm_count\": %d, \"clusters\": [%s], \"worst_fp16\": %.3g, "
      "\"worst_bf16\": "
      "%.3g}\n",
      draws, static_cast<unsigned long long>(seed), kernel_target(0), limits.sm_count,
      fmt::format("{}", fmt::join(limits.clusters, ", ")).c_str(), worst.fp16, worst.bf16);
  return 0;
}

int run_shapes(const DeviceLimits& limits) {
  Worst worst;
  int checked = 0, formats = 0;
  bool bf16 = false;
  const auto check_shape = [&](const MatrixShape& shape) {
    for (const int bits : {2, 3, 4}) {
      ++formats;
      for (int group = 0; group < 5; ++group) {
        Case one;
        one.format = {bits, kGroupSizes[group], bf16};
        // Many tokens for one group size, by turns: the float64 product is what takes time.
        const int64_t most = group == formats % 5 ? kTokenCounts[std::size(kTokenCounts) - 1] : kMaxDecodeTokens;
        one.shape = {static_cast<int>(most), static_cast<int>(shape.n), static_cast<int>(shape.k)};
        const Problem problem(one, {}, count(checked));
        bf16 = !bf16;  // by turns
        for (const int64_t m : kTokenCounts) {
          if (m > most) break;
          one.shape.m = static_cast<int>(m);
          worst.add(one, problem.check(one, limits, 1));
          ++checked;
        }
      }
    }
  };
  for (const MatrixShape& shape : kModelShapes) check_shape(shape);
  for (const MatrixShape& shape : kAwkwardShapes) check_shape(shape);
  std::printf("{\"checked\": %d, \"target\": %d, \"worst_fp16\": %.3g, \"worst_bf16\": %.3g}\n", checked,
              kernel_target(0), worst.fp16, worst.bf16);
  return 0;
}

// Every kernel that is built, found by asking for each combination of what they are compiled for. Shapes are the
// smallest in which everything happens: two blocks, the second with a row group less; steps enough that every warp
// fills both of its stages again, with a unit that K ends in; now and then two segments, or two warps side by side
// along the rows.
int run_instances(int part, int parts, const DeviceLimits& limits) {
  constexpr int kWarps = 3, kBlocks = 2, kSteps = 2 * kWarps + 1;
  std::set<const void*> found;
  int index = 0, run = 0;
  const auto check_instance = [&](const Format& format, int tiles_m, int rows, int depth) {
    DecodePlan wanted;
    wanted.valid = true;
    wanted.tiles_m = tiles_m, wanted.rows = rows, wanted.depth = depth;
    const DecodeKernel kernel = find_decode_kernel(wanted, format);
    if (kernel == nullptr || !found.insert(reinterpret_cast<const void*>(kernel)).second || index++ % parts != part - 1)
      return;
    Case one;
    one.format = format;
    const int row_warps = 1 + index % 2, longest = rows * row_warps - (row_warps > 1 && rows > 1 ? 1 : 0);
    one.shape.m = 8 * tiles_m - index % (tiles_m == 1 ? 8 : 4 * tiles_m);
    one.shape.n = kGroupRows * (kBlocks * longest - 1) - 5;
    one.shape.k = kUnitK * depth * kSteps - 32;
    one.wish = {.rows = rows, .warps = kWarps, .blocks = kBlocks, .depth = depth, .row_warps = row_warps};
    one.segments = one.shape.n >= 64 && index % 3 == 0 ? 2 : 1;
    if (find_decode_kernel(plan_of(one, limits).decode, format) != kernel) one.segments = 1;  // blocks too uneven
    const DecodePlan plan = plan_of(one, limits).decode;
    if (find_decode_kernel(plan, format) != kernel) {
      fail(ErrorCode::kInternal, "no plan for {} tiles, {} rows, {} units: {}", tiles_m, rows, depth,
           describe(one, limits));
    }
    Call call;
    call.bias = index % 3 == 0;
    call.pad_y = index % 5;
    (void)Problem(one, call, count(index)).check(one, limits, 1);
    ++run;
  };
  // Prefill, four tiles, the last one short of rows, tokens and k, steps enough to go round: two blocks take two each,
  // or three take one and share out the last.
  const auto check_prefill = [&](const Format& format, int tile) {
    const PrefillKernel kernel = find_prefill_kernel(tile, format);
    if (kernel == nullptr || !found.insert(reinterpret_cast<const void*>(kernel)).second) return;
    if (index++ % parts != part - 1) return;
    Case one;
    one.format = format;
    one.family = 2;
    one.wish = {.blocks = 2 + index % 2, .tile = tile + 1, .split = index % 2 == 0 ? 1 : 3};
    one.shape = {.m = kPrefillTiles[tile].tokens + 8,
                 .n = kGroupRows * kPrefillTiles[tile].row_groups() + 5,
                 .k = kUnitK * 37 - 32};
    one.segments = index % 3 == 0 ? 2 : 1;
    Call call;
    call.bias = index % 3 == 0;
    call.pad_y = index % 5;
    (void)Problem(one, call, count(index)).check(one, limits, 1);
    ++run;
  };
  // Prefill on mma, every tile of a kernel: four blocks, the last one short of rows, tokens and k.
  const auto check_prefill_mma = [&](const Format& format, int tile) {
    found.insert(reinterpret_cast<const void*>(find_prefill_mma_kernel(tile, format)));
    if (index++ % parts != part - 1) return;
    Case one;
    one.format = format;
    one.family = 3;
    one.wish = {.tile = tile + 1};
    one.shape = {.m = kPrefillMmaTiles[tile].tokens() + 8,
                 .n = kGroupRows * kPrefillMmaTiles[tile].row_groups() + 5,
                 .k = kUnitK * 17 - 32};
    one.segments = index % 3 == 0 ? 2 : 1;
    if (!plan_of(one, limits).valid()) return;  // a card with little shared memory
    Call call;
    call.bias = index % 3 == 0;
    call.pad_y = index % 5;
    (void)Problem(one, call, count(index)).check(one, limits, 1);
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
      for (int tile = 0; limits.wgmma && tile < kPrefillTileCount; ++tile) {
        check_prefill({bits, 128, bf16}, tile);
        check_prefill({bits, 32, bf16}, tile);
      }
      for (int tile = 0; tile < kPrefillMmaTileCount; ++tile) {
        check_prefill_mma({bits, 128, bf16}, tile);
        check_prefill_mma({bits, 32, bf16}, tile);
      }
    }
  }
  std::printf("{\"instances\": %d, \"of\": %zu, \"target\": %d}\n", run, found.size(), kernel_target(0));
  return 0;
}

}  // namespace flute::cuda::lab
