#pragma once
#include <memory>
#include <span>

#include "flute/gemm.hpp"

namespace flute::cpu {

/// The CPU's part of Matrix::from_packed, for checked segments.
std::unique_ptr<Matrix::Impl> make_matrix(Device device, std::span<const PackedView> segments,
                                          const MatrixOptions& options);

}  // namespace flute::cpu
