#pragma once
#include <string>

#include "flute/gemm.hpp"
#include "random_packed.hpp"

namespace flute {

/// A format that CUDA takes.
struct Draw : PackedDraw {
  DType dtype = DType::kF16;

  std::string text() const { return PackedDraw::text() + ", " + std::string(dtype_name(dtype)); }
};

constexpr Device kCudaDevice{Device::Kind::kCuda, 0};

}  // namespace flute
