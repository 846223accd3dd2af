#include <array>
#include <vector>

#include "backend/matrix_impl.hpp"
#include "base/fail.hpp"
#include "cuda/backend.hpp"
#include "cuda/device.hpp"
#include "cuda/format.hpp"
#include "cuda/tiled.hpp"

namespace flute::cuda {
namespace {

// Bytes of the matrix's parts start at multiples of this, as cudaMalloc's own do.
constexpr size_t kAlignment = 256;

// Making matrices is ordered after everything on blocking streams, so that a caller's kernel may have written the data.
const cudaStream_t kStream = cudaStreamLegacy;

class CudaMatrix final : public Matrix::Impl {
 public:
  CudaMatrix(Device where, std::span<const PackedView> segments, DType dtype);

  int64_t n() const override { return tiled_.layout.n(); }
  int64_t k() const override { return tiled_.layout.k; }
  int bits() const override { return tiled_.layout.format.bits; }
  int64_t group_size() const override { return tiled_.layout.format.group_size; }
  int segment_count() const override { return tiled_.layout.segments; }
  size_t bytes() const override { return memory_.bytes(); }
  PackedMatrix to_packed(int segment) const override {
    const DeviceScope scope(device.index);
    PackedMatrix matrix = packed_of(tiled_, segment);
    matrix.codebook = codebooks_[static_cast<size_t>(segment)];
    return matrix;
  }
  size_t workspace_bytes(int64_t, DType) const override { return 0; }  // the kernels need none
  void multiply(const GemmArgs& args, const Execution& execution) const override {
    cuda::multiply(tiled_, args, execution, multiplies_);
  }

 private:
  TiledMatrix tiled_;
  DeviceBuffer memory_;                        ///< codes, scales, codebooks
  std::vector<std::vector<float>> codebooks_;  ///< as they were given
  std::vector<Multiply> multiplies_;
};

TiledView view_of(Device where, std::span<const PackedView> segments, DType dtype) {
  TiledView view;
  view.k = segments.front().k;
  view.bits = segments.front().bits;
  view.group_size = segments.front().group_size;
  view.dtype = dtype;
  view.device = where.index;
  view.segment_count = static_cast<int>(segments.size());
  for (size_t i = 0; i < segments.size(); ++i) view.segment_rows[i] = segments[i].n;
  return view;
}

CudaMatrix::CudaMatrix(Device where, std::span<const PackedView> segments, DType dtype) : Impl(where) {
  (void)supported_format(segments, dtype);
  tiled_ = TiledMatrix(view_of(where, segments, dtype));
  (void)opened_device(where.index);
  const DeviceScope scope(where.index);
  const auto aligned = [](size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; };
  const TiledBytes bytes = tiled_.layout.bytes();
  memory_ = DeviceBuffer(aligned(bytes.codes) + aligned(bytes.scales) + bytes.codebooks);
  tiled_.codes = memory_.data();
  tiled_.scales = tiled_.codes + aligned(bytes.codes);
  tiled_.codebooks = tiled_.scales + aligned(bytes.scales);
  multiplies_ = load_multiplies(tiled_);
  fill(tiled_, segments, kStream);
  for (const PackedView& segment : segments) {
    std::vector<float>& codebook = codebooks_.emplace_back(segment.codebook.size());
    check(cudaMemcpy(codebook.data(), segment.codebook.data(), segment.codebook.size_bytes(), cudaMemcpyDefault),
          "matrix: codebook");
  }
}

}  // namespace

std::unique_ptr<Matrix::Impl> make_matrix(Device device, std::span<const PackedView> segments,
                                          const MatrixOptions& options) {
  return std::make_unique<CudaMatrix>(device, segments, options.dtype);
}

void workspace_init(Device device, void* workspace, size_t bytes, void* stream) {
  (void)opened_device(device.index);
  if (bytes == 0) return;
  expect_device_memory(workspace, device.index, "workspace");
  const DeviceScope scope(device.index);
  check(cudaMemsetAsync(workspace, 0, bytes, static_cast<cudaStream_t>(stream)), "workspace");
}

}  // namespace flute::cuda
