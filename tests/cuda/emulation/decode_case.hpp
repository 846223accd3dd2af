// A multiply on the emulated device, and in float64.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "base/seed.hpp"
#include "cuda/decode/decode.hpp"

namespace flute::cuda {

/// A kernel of decode.cuh.
struct Instance {
  int bits, tiles_m, rows, depth, groups;

  std::string text() const {
    return std::to_string(bits) + " bits, " + std::to_string(tiles_m) + " x 8 tokens, " + std::to_string(rows) +
           " row groups, " + std::to_string(depth) + " units, " + std::to_string(groups) + " scale groups a unit";
  }
};

/// What is multiplied, and how: drawn at random for an instance.
struct Draw {
  Shape shape;
  Format format;
  DecodePlan plan;
  int ldx = 0, ldy = 0;
  bool bias = false, ones = false;  ///< ones: a token is 1 at one k and 0 elsewhere

  std::string text() const {
    std::string text = "m " + std::to_string(shape.m) + ", n " + std::to_string(shape.n) + ", k " +
                       std::to_string(shape.k) + ", " + std::to_string(format.bits) + " bits, group " +
                       std::to_string(format.group_size) + (format.bf16 ? ", bf16" : ", fp16") + ", ldx " +
                       std::to_string(ldx) + ", ldy " + std::to_string(ldy) + (bias ? ", bias" : "") + ", segments at";
    for (int s = 0; s < shape.segments; ++s) text += " " + std::to_string(shape.segment_row[s]);
    return text + "; " + to_string(plan);
  }
};

/// Draws until the plan is of the instance.
inline Draw draw_for(std::mt19937_64& random, const Instance& want, bool bf16) {
  const auto pick = [&](int low, int high) { return static_cast<int>(random_between(random, low, high)); };
  for (int attempt = 0; attempt < 10000; ++attempt) {
    constexpr int kGroupSizes[] = {64, 128, 256, -1};
    Draw draw;
    draw.format = {want.bits, want.groups == 2 ? 32 : kGroupSizes[pick(0, 3)], bf16};
    // Many warps at times; with few, most tests take less time.
    const PlanWish wish{.rows = want.rows,
                        .warps = pick(0, 3) == 0 ? max_warps(want.tiles_m) : pick(1, 5),
                        .blocks = pick(1, 3),
                        .depth = want.depth,
                        .row_warps = pick(1, 3)};
    const int row_groups = pick(1, wish.blocks * want.rows * wish.row_warps);
    Shape& shape = draw.shape;
    shape.m = pick(want.tiles_m == 1 ? 1 : want.tiles_m * 4 + 1, want.tiles_m * 8);
    shape.n = row_groups * kGroupRows - (pick(0, 1) == 0 ? 0 : pick(0, kGroupRows - 1));
    shape.k = 32 * pick(1, pick(0, 1) == 0 ? 8 : 40);
    shape.segments = pick(0, kMaxSegments);
    for (int s = 1; s <= shape.segments; ++s) {
      shape.segment_row[s] = s == shape.segments
                                 ? shape.n
                                 : kGroupRows * pick(shape.segment_row[s - 1] / kGroupRows, shape.n / kGroupRows);
    }
    draw.plan = make_decode_plan(shape, draw.format, {}, wish);
    draw.ldx = shape.k + 8 * pick(0, 3), draw.ldy = shape.n + pick(0, 5);
    draw.bias = pick(0, 1) == 0;
    const DecodePlan& plan = draw.plan;
    if (plan.valid && plan.tiles_m == want.tiles_m && plan.rows == want.rows && plan.depth == want.depth) return draw;
  }
  ADD_FAILURE() << "no plan found for " << want.text();
  return {};
}

/// Runs the kernel on random data. Returns what is wrong, or nothing.
std::string wrong_in(std::mt19937_64& random, const Draw& draw, DecodeKernel kernel, int mode);

/// Tests every kernel of some bits that `select` knows.
void test_all(int bits, bool bf16, DecodeKernel (*select)(int tiles_m, int rows, int depth, int groups));

}  // namespace flute::cuda
