#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace flute {

/// a * b and a + b for sizes read from files: nothing on overflow or a negative operand.
inline std::optional<int64_t> checked_mul(int64_t a, int64_t b) {
  int64_t result = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

inline std::optional<int64_t> checked_add(int64_t a, int64_t b) {
  int64_t result = 0;
  if (a < 0 || b < 0 || __builtin_add_overflow(a, b, &result)) return std::nullopt;
  return result;
}

/// The product of a shape's dimensions; 1 for a scalar, nothing on overflow or a negative dimension.
inline std::optional<int64_t> checked_product(std::span<const int64_t> shape) {
  std::optional<int64_t> product = 1;
  bool zero = false;
  for (const int64_t dim : shape) {
    if (dim < 0) return std::nullopt;
    zero = zero || dim == 0;
  }
  if (zero) return 0;
  for (const int64_t dim : shape) {
    if (product) product = checked_mul(*product, dim);
  }
  return product;
}

}  // namespace flute
