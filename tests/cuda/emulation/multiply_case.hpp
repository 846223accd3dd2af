// A multiply on the emulated device, and in float64.
#pragma once
#include <functional>
#include <random>
#include <string>

#include "base/seed.hpp"
#include "cuda/arguments.hpp"
#include "cuda/plan.hpp"

namespace flute::cuda {

/// What is multiplied: drawn at random, for a kernel.
struct Draw {
  Shape shape;
  Format format;
  int ldx = 0, ldy = 0;
  bool bias = false, ones = false;  ///< ones: a token is 1 at one k and 0 elsewhere

  std::string text() const {
    std::string text = "m " + std::to_string(shape.m) + ", n " + std::to_string(shape.n) + ", k " +
                       std::to_string(shape.k) + ", " + std::to_string(format.bits) + " bits, group " +
                       std::to_string(format.group_size) + (format.bf16 ? ", bf16" : ", fp16") + ", ldx " +
                       std::to_string(ldx) + ", ldy " + std::to_string(ldy) + (bias ? ", bias" : "") + ", segments at";
    for (int s = 0; s < shape.segments; ++s) text += " " + std::to_string(shape.segment_row[s]);
    return text;
  }
};

/// A matrix of up to so many tokens and row groups, with segments, for `groups` scale groups in a unit.
Draw draw_matrix(std::mt19937_64& random, int bits, bool bf16, int groups, int tokens_low, int tokens_high,
                 int row_groups);

/// Runs a kernel on random data, in one of eight ways (`mode`). Returns what is wrong, or nothing.
std::string wrong_in(std::mt19937_64& random, const Draw& draw, int blocks, int threads, int shared_bytes, int mode,
                     const std::function<void(const MultiplyArguments&)>& kernel);

}  // namespace flute::cuda
