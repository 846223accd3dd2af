#pragma once
#include <span>

#include "cuda/plan.hpp"
#include "flute/packed.hpp"

namespace flute::cuda {

/// The kernels' name for how a matrix is multiplied with activations of `dtype`. Throws kUnsupported where there are no
/// kernels for it.
Format supported_format(int64_t n, int64_t k, int bits, int64_t group_size, DType dtype);

/// The same for segments of one format, as Matrix::from_packed checks them. Reads sizes only; needs no device.
Format supported_format(std::span<const PackedView> segments, DType dtype);

}  // namespace flute::cuda
