#pragma once
#include <cstdint>
#include <string_view>

namespace flute {

/// Throws kInvalidArgument unless N >= 0, K is a positive multiple of 32, N x K fits 63 bits, bits are 1..8 and the
/// group size is one of PackedView's. `what` starts the message.
void check_shape(int64_t n, int64_t k, int bits, int64_t group_size, std::string_view what);

}  // namespace flute
