#pragma once
#include <algorithm>
#include <memory>
#include <random>
#include <string>

#include "cuda/device/device_test.hpp"
#include "cuda/device/work.hpp"
#include "cuda/measure/reference.hpp"
#include "cuda/random_matrix.hpp"

namespace flute {

/// What a caller may choose of the inputs, and of the outputs. Offsets are in elements, from memory as it is allocated.
struct GemmInputs {
  int64_t pad_x = 0, offset_x = 0;
  bool bias = false;
};
struct GemmOutputs {
  int64_t pad_y = 0, offset_y = 0;
  bool dependent_launch = true;
};

/// The weights of `segments` as the format defines them, in `dtype`: [n, k].
inline std::vector<std::byte> dense_weights(const std::vector<PackedMatrix>& segments, DType dtype) {
  std::vector<std::byte> dense;
  for (const PackedMatrix& segment : segments) {
    const size_t at = dense.size();
    dense.resize(at + static_cast<size_t>(segment.n * segment.k) * 2);
    dequantize_rows(segment.view(), 0, segment.n, dtype, dense.data() + at);
  }
  return dense;
}

/// A matrix on the device, and activations with their products in float64.
class GemmCase {
 public:
  GemmCase(std::mt19937_64& random, const Draw& given, int64_t tokens, const GemmInputs& chosen = {})
      : draw(given), m(tokens), inputs(chosen), ldx_(given.k + chosen.pad_x) {
    const std::vector<PackedMatrix> segments = random_segments(random, draw);
    matrix_ = std::make_unique<Matrix>(Matrix::from_packed(kCudaDevice, views_of(segments), {.dtype = draw.dtype}));
    const std::vector<std::byte> dense = dense_weights(segments, draw.dtype);
    const DeviceMemory weights(dense.data(), dense.size());
    // Between the rows of x, before the first and behind the last lies NaN.
    x_ = std::make_unique<DeviceMemory>(static_cast<size_t>(inputs.offset_x + m * ldx_) * 2 + 4096);
    for (int64_t token = 0; token < (inputs.pad_x == 0 ? 1 : m); ++token) {
      fill_uniform(x_at(token), draw.dtype, inputs.pad_x == 0 ? m * draw.k : draw.k, random());
    }
    if (inputs.bias) {
      bias_ = std::make_unique<DeviceMemory>(static_cast<size_t>(draw.n()) * 2);
      fill_uniform(bias_->data(), draw.dtype, draw.n(), random());
    }
    expected_ = std::make_unique<DeviceMemory>(static_cast<size_t>(m * draw.n()) * 8);
    squares_ = std::make_unique<DeviceMemory>(static_cast<size_t>(m * draw.n()) * 8);
    cuda::reference_multiply(weights.data(), x_at(0), ldx_, bias_ ? bias_->data() : nullptr, doubles(*expected_),
                             doubles(*squares_), m, draw.n(), draw.k, draw.dtype);
    succeed(cudaDeviceSynchronize());
  }

  std::byte* x_at(int64_t token) const { return x_->data() + (inputs.offset_x + token * ldx_) * 2; }

  /// Multiplies the first `tokens` and expects the promised accuracy, and nothing written but y.
  void expect(int64_t tokens, const GemmOutputs& outputs = {}) const {
    const int64_t ldy = draw.n() + outputs.pad_y, guard = kGuard + outputs.offset_y;
    const DeviceMemory y = run(tokens, outputs);
    const cuda::Comparison result =
        cuda::compare(y.data(), guard, ldy, doubles(*expected_), doubles(*squares_), tokens, draw.n(), draw.dtype);
    const std::string text = draw.text() + ", m " + std::to_string(tokens) + ", ldx " + std::to_string(ldx_) +
                             ", offset of x " + std::to_string(inputs.offset_x) + ", pad and offset of y " +
                             std::to_string(outputs.pad_y) + ", " + std::to_string(outputs.offset_y) +
                             (bias_ ? ", bias" : "");
    EXPECT_EQ(result.outside, 0u) << "wrote beside y: " << text;
    EXPECT_EQ(result.not_finite, 0u) << "not written, or read beside x: " << text;
    EXPECT_LE(result.error(), cuda::promised_error(draw.dtype, draw.n())) << text;
  }

  /// y of the first `tokens`, in a buffer that was NaN: kGuard and the offset before, as many elements behind.
  DeviceMemory run(int64_t tokens, const GemmOutputs& outputs = {}) const {
    const int64_t ldy = draw.n() + outputs.pad_y, guard = kGuard + outputs.offset_y;
    DeviceMemory y(static_cast<size_t>(2 * guard + tokens * ldy) * 2);
    // Behind the workspace lies memory that is not the call's.
    const size_t bytes = gemm_workspace_bytes(*matrix_, tokens, draw.dtype);
    EXPECT_LE(bytes, size_t{64} << 20) << draw.text() << ", m " << tokens;
    const DeviceMemory workspace(bytes + kWorkspaceGuard);
    workspace_init(kCudaDevice, workspace.data(), bytes);
    GemmArgs args;
    args.m = tokens;
    args.x = x_at(0);
    args.ldx = ldx_;
    args.y = y.data() + guard * 2;
    args.ldy = ldy;
    args.bias = bias_ ? bias_->data() : nullptr;
    args.dtype = draw.dtype;
    Execution execution;
    execution.workspace = workspace.data();
    execution.workspace_bytes = bytes;
    execution.dependent_launch = outputs.dependent_launch;
    gemm(*matrix_, args, execution);
    const std::vector<std::byte> after = workspace.host();
    EXPECT_TRUE(std::all_of(after.begin() + static_cast<std::ptrdiff_t>(bytes), after.end(),
                            [](std::byte b) { return b == std::byte{0xff}; }))
        << "wrote behind the workspace: " << draw.text() << ", m " << tokens;
    return y;
  }

  const Draw draw;
  const int64_t m;
  const GemmInputs inputs;

  static constexpr int64_t kGuard = 4096;  // elements before and behind y

 private:
  static constexpr size_t kWorkspaceGuard = 4096;
  static double* doubles(const DeviceMemory& memory) { return reinterpret_cast<double*>(memory.data()); }

  int64_t ldx_;
  std::unique_ptr<Matrix> matrix_;
  std::unique_ptr<DeviceMemory> x_, bias_, expected_, squares_;
};

}  // namespace flute
