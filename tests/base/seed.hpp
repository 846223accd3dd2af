#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>

namespace flute {

/// A random generator with a fresh seed, which is printed; the environment variable FLUTE_TEST_SEED brings a seed back.
inline std::mt19937_64 fresh_random() {
  const char* given = std::getenv("FLUTE_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cout << "FLUTE_TEST_SEED=" << seed << std::endl;
  return std::mt19937_64(seed);
}

/// A random integer in [low, high].
template <typename Random>
int64_t random_between(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

}  // namespace flute
