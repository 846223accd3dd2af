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

/// Numbers of tokens: tests/shapes.hpp's, and what lies on either side of a tile of any kernel.
constexpr int kPlanTokens[] = {1,  2,   3,   4,   7,   8,   13,  16,  17,  32,  33,   53,   64,  65,
                               96, 127, 128, 129, 200, 255, 256, 257, 300, 512, 1000, 1024, 4096};
constexpr int kMostPlanTokens = 4096;

struct PlanCase {
  Shape shape;
  Format format;
  Card card;
  PlanWish wish = {};

  /// The case, and what it got.
  template <typename Plan>
  std::string text(const Plan& plan) const {
    std::string text = std::string(card.name) + ", m " + std::to_string(shape.m) + ", ";
    for (int s = 1; s < shape.segments; ++s) text += std::to_string(shape.segment_row[s]) + " | ";
    text += std::to_string(shape.n) + " x " + std::to_string(shape.k) + ", " + std::to_string(format.bits) +
            " bits, group " + std::to_string(format.group_size) + (format.bf16 ? ", bf16" : ", fp16");
    if (wish.blocks != 0) text += ", wish blocks " + std::to_string(wish.blocks);
    if (wish.split != 0) text += ", wish split " + std::to_string(wish.split);
    if (wish.tile != 0) text += ", wish tile " + std::to_string(wish.tile);
    return text + ": " + to_string(plan);
  }
};

/// Calls `visit` with every shape, number of tokens up to `most_tokens`, format and card; until it returns false.
template <typename Visit>
void for_model_shapes(int most_tokens, const Visit& visit) {
  const auto all = [&](const MatrixShape& shape) {
    for (const Card& card : kCards) {
      for (const int m : kPlanTokens) {
        if (m > most_tokens) break;
        for (const int bits : {2, 3, 4}) {
          for (const int group : kGroupSizes) {
            for (const bool bf16 : {false, true}) {
              const Shape sizes{.m = m, .n = static_cast<int>(shape.n), .k = static_cast<int>(shape.k)};
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
void for_random_shapes(int count, int most_tokens, const Visit& visit) {
  auto random = fresh_random();
  for (int i = 0; i < count; ++i) {
    const auto size = [&](int64_t most) {
      return static_cast<int>(random_between(random, 1, random_between(random, 1, most)));
    };
    PlanCase one;
    one.shape = {.m = size(most_tokens), .n = size(1 << 17), .k = 32 * size(1 << 11)};
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
