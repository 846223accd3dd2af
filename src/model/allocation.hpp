#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace flute::model {

/// One of the things that something may become: what it takes, and what it loses by it.
struct Alternative {
  int64_t bytes = 0;
  double loss = 0;
};

/// For each item the index of one of its alternatives (1 to 255 of them), so that together they take at most `budget`
/// bytes and the sum of the losses is the least there is (a knapsack with one choice per item, by dynamic programming).
/// Bytes above the least possible are counted in steps of a 65,536th of what the budget leaves for them, rounded up:
/// the budget is always kept, and what is found is the best that takes a few thousandths less. Of equal losses the
/// earlier alternative. Throws kInvalidArgument where even the smallest alternatives take more.
std::vector<size_t> allocate_bytes(std::span<const std::vector<Alternative>> items, int64_t budget);

}  // namespace flute::model
