#pragma once
#include <iterator>
#include <random>
#include <string>

#include "base/seed.hpp"
#include "cuda/plan.hpp"
#include "shapes.hpp"

/// What plans are tested for.
namespace flute::cuda {

struct Card {
  const char* name;
  DeviceLimits limits;
};
/// Multiprocessors, bytes of shared memory that a block may have, whether there is wgmma.
constexpr Card kCards[] = {
    {"H100", {132, 227 * 1024, true}}, {"A100", {108, 163 * 1024, false}}, {"A6000", {84, 99 * 1024, false}}};

constexpr int kGroupSizes[] = {32, 64, 128, 256, -1};

struct PlanCase {
  Shape shape;
  Format format;
  Card card;

  std::string text() const {
    return std::string(card.name) + ", m " + std::to_string(shape.m) + ", " + std::to_string(shape.n) + " x " +
           std::to_string(shape.k) + ", " + std::to_string(format.bits) + " bits, group " +
           std::to_string(format.group_size) + (format.bf16 ? ", bf16: " : ", fp16: ") + to_string(plan());
  }
  DecodePlan plan() const { return make_decode_plan(shape, format, card.limits); }
};

/// Calls `visit` with every shape, number of tokens, format and card; until it returns false.
template <typename Visit>
void for_model_shapes(const Visit& visit) {
  const auto all = [&](const MatrixShape& shape) {
    for (const Card& card : kCards) {
      for (const int64_t m : kTokenCounts) {
        if (m > kMaxDecodeTokens) break;
        for (const int bits : {2, 3, 4}) {
          for (const int group : kGroupSizes) {
            for (const bool bf16 : {false, true}) {
              const Shape sizes{
                  .m = static_cast<int>(m), .n = static_cast<int>(shape.n), .k = static_cast<int>(shape.k)};
              if (!visit(PlanCase{sizes, {bits, group, bf16}, card})) return false;
            }
          }
        }
      }
    }
    return true;
  };
  for (const MatrixShape& shape : kModelShapes) {
    if (!all(shape)) return;
  }
  for (const MatrixShape& shape : kAwkwardShapes) {
    if (!all(shape)) return;
  }
}

/// Any shape: as often small as large.
template <typename Visit>
void for_random_shapes(int count, const Visit& visit) {
  auto random = fresh_random();
  for (int i = 0; i < count; ++i) {
    const auto size = [&](int64_t most) {
      return static_cast<int>(random_between(random, 1, random_between(random, 1, most)));
    };
    PlanCase one;
    one.shape = {.m = static_cast<int>(random_between(random, 1, kMaxDecodeTokens)),
                 .n = size(1 << 17),
                 .k = 32 * size(1 << 11)};
    // Segments of any sizes, none among them; boundaries as the library demands them.
    one.shape.segments = static_cast<int>(random_between(random, 0, kMaxSegments));
    for (int s = 1; s <= one.shape.segments; ++s) {
      const int from = one.shape.segment_row[s - 1] / 32, to = one.shape.n / 32;
      one.shape.segment_row[s] =
          s == one.shape.segments ? one.shape.n : 32 * static_cast<int>(random_between(random, from, to));
    }
    one.format = {static_cast<int>(random_between(random, 2, 4)), kGroupSizes[random_between(random, 0, 4)],
                  random_between(random, 0, 1) == 1};
    one.card = kCards[random_between(random, 0, std::size(kCards) - 1)];
    if (!visit(one)) return;
  }
}

}  // namespace flute::cuda
