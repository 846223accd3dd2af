// A build without CUDA: everything that would need a device says so.
#include "backend/matrix_impl.hpp"
#include "base/fail.hpp"
#include "cuda/backend.hpp"

namespace flute::cuda {

namespace {

[[noreturn]] void refuse() { fail(ErrorCode::kUnsupported, "this build has no CUDA backend"); }

}  // namespace

std::unique_ptr<Matrix::Impl> make_matrix(Device, std::span<const PackedView>, const MatrixOptions&) { refuse(); }

void workspace_init(Device, void*, size_t, void*) { refuse(); }

void tile(const TiledView&, std::span<const PackedView>, void*) { refuse(); }
void untile(const TiledView&, int, uint32_t*, void*) { refuse(); }
void dequantize(const TiledView&, void*, void*) { refuse(); }
void multiply(const TiledView&, const GemmArgs&, const Execution&) { refuse(); }

}  // namespace flute::cuda
