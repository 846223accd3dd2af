#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace flute {

/// The nearest value of a table as a function of t, prepared for searching: the table's distinct values in ascending
/// order divide the line into intervals, and `thresholds[i]` is the least float that belongs to interval i + 1.
/// The boundary between neighbours a < b is (a + b) / 2 in double; a t that lies on it goes to the lower code.
/// Values that occur more than once count with their lowest code.
struct NearestTable {
  explicit NearestTable(std::span<const float> values);

  int bits;                           ///< log2 of the table's length
  bool ascending;                     ///< interval i has code i
  std::array<float, 256> thresholds;  ///< NaN, which no t reaches, from the number of intervals - 1 on
  std::array<uint8_t, 256> codes;     ///< of the intervals
};

/// The bits of the largest magnitude; 0x7f800000 or more where one of the values is infinite or NaN.
uint32_t absmax_bits(const float* values, size_t count);

/// codes[i] = the code of the value nearest to values[i] / scale; infinite quotients go to the outermost values.
void nearest_codes(const NearestTable& table, const float* values, float scale, size_t count, uint8_t* codes);

}  // namespace flute
