// Every prefill kernel on mma.sync, in every tile that it serves, on the emulated device: numbers against float64,
// memory, and who waits for whom.
#include <gtest/gtest.h>

#include "cuda/emulation/multiply_case.hpp"
#include "cuda/prefill_mma/instances.hpp"

namespace flute::cuda {
namespace {

void test_all(int bits, bool bf16, PrefillMmaKernel (*select)(int rows, int row_warps, int groups)) {
  auto random = fresh_random();
  int mode = static_cast<int>(random_between(random, 0, 7));
  for (const int groups : {1, 2}) {
    for (int tile = 0; tile < kPrefillMmaTileCount; ++tile) {
      const PrefillMmaTile& shape = kPrefillMmaTiles[tile];
      const PrefillMmaKernel kernel = select(shape.rows, shape.row_warps, groups);
      ASSERT_NE(kernel, nullptr) << tile;
      // More tokens and rows than a tile has, so a second one, often all but empty.
      Draw draw = draw_matrix(random, bits, bf16, groups, 1, shape.tokens() + 20, shape.row_groups() + 3);
      draw.ones = tile % 2 == 0;
      // An A100's shared memory holds two stages where an H100's holds three.
      const DeviceLimits limits{.shared_per_block = (tile + mode / 2 % 2) % 2 == 0 ? 227 * 1024 : 163 * 1024};
      const PrefillMmaPlan plan = make_prefill_mma_plan(draw.shape, draw.format, limits, {.tile = tile + 1});
      ASSERT_TRUE(plan.valid) << draw.text();
      const std::string wrong = wrong_in(random, draw, plan.blocks(), 32 * plan.shape.warps(), plan.shared_bytes,
                                         mode++, [&](const MultiplyArguments& arguments) {
                                           kernel({arguments, plan});
                                         });
      ASSERT_EQ(wrong, "") << draw.text() << "; " << to_string(plan) << ", mode " << (mode - 1) % 8;
    }
  }
}

TEST(EmulatedPrefillMma, Fp16With4Bits) { test_all(4, false, prefill_mma_fp16_4); }
TEST(EmulatedPrefillMma, Fp16With3Bits) { test_all(3, false, prefill_mma_fp16_3); }
TEST(EmulatedPrefillMma, Fp16With2Bits) { test_all(2, false, prefill_mma_fp16_2); }
TEST(EmulatedPrefillMma, Bf16With4Bits) { test_all(4, true, prefill_mma_bf16_4); }
TEST(EmulatedPrefillMma, Bf16With3Bits) { test_all(3, true, prefill_mma_bf16_3); }
TEST(EmulatedPrefillMma, Bf16With2Bits) { test_all(2, true, prefill_mma_bf16_2); }

}  // namespace
}  // namespace flute::cuda
