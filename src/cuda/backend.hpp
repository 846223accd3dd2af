#pragma once
#include <memory>
#include <span>

#include "flute/gemm.hpp"
#include "flute/tiled.hpp"

namespace flute::cuda {

/// CUDA's part of Matrix::from_packed, for segments whose sizes are checked (not their values: they may lie on the
/// device). Throws kUnsupported, in a build without CUDA always.
std::unique_ptr<Matrix::Impl> make_matrix(Device device, std::span<const PackedView> segments,
                                          const MatrixOptions& options);

/// flute::workspace_init for a CUDA device.
void workspace_init(Device device, void* workspace, size_t bytes, void* stream);

/// Those of flute/tiled.hpp, for views and segments whose sizes are checked. In a build without CUDA all but the first
/// throw kUnsupported.
TiledBytes tiled_bytes(const TiledView& matrix);
void tile(const TiledView& matrix, std::span<const PackedView> segments, void* stream);
void untile(const TiledView& matrix, int segment, uint32_t* codes, void* stream);
void dequantize(const TiledView& matrix, void* out, void* stream);
void multiply(const TiledView& matrix, const GemmArgs& args, const Execution& execution);

}  // namespace flute::cuda
