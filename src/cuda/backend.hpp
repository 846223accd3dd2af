#pragma once
#include <memory>
#include <span>

#include "flute/gemm.hpp"

namespace flute::cuda {

/// CUDA's part of Matrix::from_packed, for segments whose sizes are checked (not their values: they may lie on the
/// device). Throws kUnsupported, in a build without CUDA always.
std::unique_ptr<Matrix::Impl> make_matrix(Device device, std::span<const PackedView> segments,
                                          const MatrixOptions& options);

/// flute::workspace_init for a CUDA device.
void workspace_init(Device device, void* workspace, size_t bytes, void* stream);

}  // namespace flute::cuda
