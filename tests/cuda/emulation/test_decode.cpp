// Every decode kernel that is built, on the emulated device: numbers against float64, memory, and who waits for whom.
#include <gtest/gtest.h>

#include "cuda/decode/instances.hpp"
#include "cuda/emulation/multiply_case.hpp"

namespace flute::cuda {
namespace {

/// A kernel of decode.cuh.
struct Instance {
  int bits, tiles_m, rows, depth, groups;

  std::string text() const {
    return std::to_string(bits) + " bits, " + std::to_string(tiles_m) + " x 8 tokens, " + std::to_string(rows) +
           " row groups, " + std::to_string(depth) + " units, " + std::to_string(groups) + " scale groups a unit";
  }
};

/// Draws until there is a plan of the instance.
DecodePlan draw_for(std::mt19937_64& random, const Instance& want, bool bf16, Draw& draw) {
  const auto pick = [&](int low, int high) { return static_cast<int>(random_between(random, low, high)); };
  for (int attempt = 0; attempt < 10000; ++attempt) {
    // Many warps at times; with few, most tests take less time.
    const PlanWish wish{.rows = want.rows,
                        .warps = pick(0, 3) == 0 ? max_warps(want.tiles_m) : pick(1, 5),
                        .blocks = pick(1, 3),
                        .depth = want.depth,
                        .row_warps = pick(1, 3)};
    draw = draw_matrix(random, want.bits, bf16, want.groups, want.tiles_m == 1 ? 1 : want.tiles_m * 4 + 1,
                       want.tiles_m * 8, wish.blocks * want.rows * wish.row_warps);
    const DecodePlan plan = make_decode_plan(draw.shape, draw.format, {}, wish);
    if (plan.valid && plan.tiles_m == want.tiles_m && plan.rows == want.rows && plan.depth == want.depth) return plan;
  }
  ADD_FAILURE() << "no plan found for " << want.text();
  return {};
}

/// Tests every kernel of some bits that `select` knows.
void test_all(int bits, bool bf16, DecodeKernel (*select)(int tiles_m, int rows, int depth, int groups)) {
  auto random = fresh_random();
  int mode = static_cast<int>(random_between(random, 0, 7));
  for (const int tiles_m : {1, 2, 4, 8}) {
    for (const int groups : {1, 2}) {
      for (int rows = 1; rows <= max_rows(tiles_m); ++rows) {
        for (int depth = 1; depth <= max_depth(bits, tiles_m, rows); ++depth) {
          const Instance instance{bits, tiles_m, rows, depth, groups};
          const DecodeKernel kernel = select(tiles_m, rows, depth, groups);
          ASSERT_NE(kernel, nullptr) << instance.text();
          for (const bool ones : {false, true}) {
            Draw draw;
            const DecodePlan plan = draw_for(random, instance, bf16, draw);
            if (!plan.valid) return;
            draw.ones = ones;
            const std::string wrong = wrong_in(random, draw, plan.deal.blocks, 32 * plan.warps(), plan.shared_bytes,
                                               mode++, [&](const MultiplyArguments& arguments) {
                                                 kernel({arguments, plan});
                                               });
            ASSERT_EQ(wrong, "") << draw.text() << "; " << to_string(plan) << ", mode " << (mode - 1) % 8;
          }
        }
      }
    }
  }
}

TEST(EmulatedDecode, Fp16With4Bits) { test_all(4, false, decode_fp16_4); }
TEST(EmulatedDecode, Fp16With3Bits) { test_all(3, false, decode_fp16_3); }
TEST(EmulatedDecode, Fp16With2Bits) { test_all(2, false, decode_fp16_2); }
TEST(EmulatedDecode, Bf16With4Bits) { test_all(4, true, decode_bf16_4); }
TEST(EmulatedDecode, Bf16With3Bits) { test_all(3, true, decode_bf16_3); }
TEST(EmulatedDecode, Bf16With2Bits) { test_all(2, true, decode_bf16_2); }

}  // namespace
}  // namespace flute::cuda
