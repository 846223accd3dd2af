#pragma once
#include <span>

#include "cuda/plan.hpp"
#include "flute/packed.hpp"

namespace flute::cuda {

/// The kernels' name for what segments of one format (as Matrix::from_packed checks them) are multiplied as with
/// activations of `dtype`. Throws kUnsupported where there are no kernels for it. Reads sizes only; needs no device.
Format supported_format(std::span<const PackedView> segments, DType dtype);

}  // namespace flute::cuda
