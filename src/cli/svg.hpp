#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace flute::cli {

/// Text for an HTML or SVG element or a quoted attribute. Characters that XML forbids become U+FFFD.
std::string escape_html(std::string_view text);

/// A coordinate: at most two decimals, no exponent; 0 for what is not finite.
std::string coordinate(double value);

/// Maps a range of values onto a range of coordinates, linearly or by logarithm.
struct Scale {
  double low = 0, high = 1;   ///< values; low < high, both positive for a logarithmic scale
  double start = 0, end = 1;  ///< their coordinates
  bool logarithmic = false;
  double operator()(double value) const;
};

/// Round values (1, 2 or 5 times a power of ten apart) inside [low, high], about `count` of them, at least two where
/// low < high.
std::vector<double> linear_ticks(double low, double high, int count);
/// Round values inside [low, high] for a logarithmic axis, at most about `count`, at least two where low < high.
std::vector<double> log_ticks(double low, double high, int count);
/// A tick's label: as many decimals as its neighbours need.
std::string tick_label(double value);

}  // namespace flute::cli
