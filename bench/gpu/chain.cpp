// The multiplies of Llama-3-8B's block in a graph, each fed by the one before through a small kernel of another maker.
#include <algorithm>
#include <array>

#include "base/fail.hpp"
#include "chain.hpp"
#include "cuda/measure/graph.hpp"
#include "lab.hpp"

namespace flute::cuda::lab {
namespace {

struct Step {
  int n, k;
};
// qkv -> mix_heads -> o -> normalize -> gate and up -> gate_up -> down -> normalize -> the next layer's qkv.
constexpr std::array<Step, 4> kSteps = {
    {{kQkv, kHidden}, {kHidden, kHidden}, {2 * kInner, kHidden}, {kHidden, kInner}}};

}  // namespace

std::string time_chain(Bench& bench, const Keys& keys) {
  std::array<Case, 4> cases;
  std::array<size_t, 4> code_offset, scale_offset;
  size_t layer_codes = 0, layer_scales = 0;
  for (size_t step = 0; step < 4; ++step) {
    cases[step] = to_case(keys);
    cases[step].shape.n = kSteps[step].n, cases[step].shape.k = kSteps[step].k;
    if (cases[step].format.bf16) fail(ErrorCode::kUnsupported, "chain: expected fp16, found bf16");
    code_offset[step] = layer_codes, scale_offset[step] = layer_scales;
    layer_codes += Bench::code_bytes(cases[step]), layer_scales += Bench::scale_bytes(cases[step]);
  }
  const int tokens = cases[0].shape.m;
  // As many layers as it takes to read more than four times the L2 cache, each with weights of its own.
  const auto layers = static_cast<int>(kRotate / layer_codes) + 1;
  const int count = std::max(layers, 8);
  if (layers * layer_codes > bench.pool_bytes() || layers * layer_scales > bench.scale_pool_bytes()) {
    fail(ErrorCode::kInternal, "chain: too little memory");
  }
  const auto multiply = [&](size_t step, int layer, bool dependent) {
    Case one = cases[step];
    one.dependent = dependent;
    MultiplyArguments arguments = bench.arguments(one);
    const auto at = static_cast<size_t>(layer % layers);
    arguments.codes = bench.pool() + at * layer_codes + code_offset[step];
    arguments.scales = bench.scale_pool() + at * layer_scales + scale_offset[step];
    launch(plan_of(one, bench.limits()), arguments, one, bench.stream());
  };
  const auto between = [&](size_t step) {
    check(launch_between(static_cast<int>(step), bench.y(), bench.x(), tokens, bench.stream()), "chain");
  };
  const auto chain = [&](bool dependent) {
    return time_graph(bench.stream(), count, [&](int layer) {
      for (size_t step = 0; step < 4; ++step) {
        multiply(step, layer, dependent);
        between(step);
      }
    });
  };
  for (size_t step = 0; step < 4; ++step) multiply(step, 0, false);  // loads the kernels
  const Times ours = chain(true), plain = chain(false);
  const Times others = time_graph(bench.stream(), count, [&](int) {
    for (size_t step = 0; step < 4; ++step) between(step);
  });
  double floors = 0, dense = 0;
  std::string each;
  for (const Case& one : cases) {
    const Times floor = bench.floor(Bench::bytes(one));
    floors += floor.median;
    dense += bench.dense(tokens, one.shape.n, one.shape.k).median;
    each += fmt::format("{}{:.3f}", each.empty() ? "" : ", ", microseconds(floor.median));
  }
  return fmt::format(
      R"("set": "chain", "dtype": "fp16", "bits": {}, "group": {}, "m": {}, "layers": {}, "us": {:.3f}, )"
      R"("low_us": {:.3f}, "high_us": {:.3f}, "plain_us": {:.3f}, "between_us": {:.3f}, "floors_us": [{}], )"
      R"("cublas_us": {:.3f}, "over_floors": {:.4f})",
      cases[0].format.bits, cases[0].format.group_size, tokens, layers, microseconds(ours.median),
      microseconds(ours.low), microseconds(ours.high), microseconds(plain.median), microseconds(others.median), each,
      microseconds(dense), ours.median / (floors + others.median));
}

}  // namespace flute::cuda::lab
