// flute::gemm_tiled and its gradient on CUDA devices, on PyTorch's current stream. The calls allocate through PyTorch
// and synchronise nothing, so they may be captured in a graph.
#include <dlfcn.h>

#include <algorithm>
#include <optional>

#include "operator.hpp"

namespace flute_torch {
namespace {

constexpr size_t kAlignment = 16;  // of x

/// PyTorch's current stream of a device. The function is in libtorch_cuda, which a PyTorch for the CPU does not have:
/// where there is a CUDA tensor, it is loaded.
void* current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* const symbol = library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Function>(symbol);
  }();
  if (function == nullptr) fail("expected a PyTorch with CUDA, found no aoti_torch_get_current_cuda_stream in it");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return stream;
}

int64_t sum(const std::vector<int64_t>& rows) {
  int64_t n = 0;
  for (const int64_t count : rows) n += count;
  return n;
}

void expect_bytes(const Tensor& tensor, size_t bytes, int32_t device, const char* argument) {
  if (!tensor.is_cuda() || tensor.get_device_index() != device) {
    fail(argument, ": expected a tensor on CUDA device ", device, ", as x is");
  }
  const auto found = static_cast<size_t>(tensor.numel()) * tensor.element_size();
  if (!tensor.is_contiguous() || found != bytes) {
    fail(argument, ": expected ", static_cast<int64_t>(bytes), " contiguous bytes for these sizes, found ",
         static_cast<int64_t>(found));
  }
}

/// The tensors as the library sees them, while they live.
flute_tiled_view view_of(const Tensor& codes, const Tensor& scales, const Tensor& codebooks,
                         const std::vector<int64_t>& rows, int64_t k, int64_t bits, int64_t group_size,
                         int32_t device) {
  flute_tiled_view view = {};
  view.size = sizeof(view);
  if (rows.empty() || rows.size() > std::size(view.segment_rows)) {
    fail("rows: expected 1..4 matrices, found ", static_cast<int64_t>(rows.size()));
  }
  view.k = k;
  view.group_size = group_size;
  std::copy(rows.begin(), rows.end(), view.segment_rows);
  view.segment_count = static_cast<int32_t>(rows.size());
  if (bits < 2 || bits > 4) fail("bits: expected 2, 3 or 4, found ", bits);
  view.bits = static_cast<int32_t>(bits);
  view.dtype = dtype_of(scales, "scales");
  view.device = device;
  size_t code_bytes = 0, scale_bytes = 0, codebook_bytes = 0;
  check(flute_tiled_bytes(&view, &code_bytes, &scale_bytes, &codebook_bytes));
  if (codebooks.scalar_type() != scales.scalar_type()) fail("codebooks: expected the dtype of scales, found another");
  expect_bytes(codes, code_bytes, device, "codes");
  expect_bytes(scales, scale_bytes, device, "scales");
  expect_bytes(codebooks, codebook_bytes, device, "codebooks");
  view.codes = codes.data_ptr();
  view.scales = scales.data_ptr();
  view.codebooks = codebooks.data_ptr();
  return view;
}

Tensor gemm_tiled(const Tensor& x, const Tensor& codes, const Tensor& scales, const Tensor& codebooks,
                  const std::optional<Tensor>& bias, const std::vector<int64_t>& rows, int64_t k, int64_t bits,
                  int64_t group_size) {
  if (!x.is_cuda()) fail("x: expected a tensor on a CUDA device");
  const int32_t device = x.get_device_index();
  const flute_tiled_view view = view_of(codes, scales, codebooks, rows, k, bits, group_size, device);
  flute_gemm_args args = {};
  args.size = sizeof(args);
  args.dtype = dtype_of(x, "x");
  if (args.dtype != view.dtype) fail("x: expected the dtype of scales, found another");
  const int64_t n = sum(rows);
  const std::vector<int64_t> shape = reshaped(x, k, n, "x");
  std::optional<Tensor> bias_values;
  if (bias) {
    bias_values = checked_bias(*bias, x, n);
    args.bias = bias_values->const_data_ptr();
  }
  Tensor given = as_contiguous(x);
  if (reinterpret_cast<uintptr_t>(given.const_data_ptr()) % kAlignment != 0) given = torch::stable::clone(given);
  Tensor y = make_empty(x, shape);
  args.m = given.numel() / k;
  args.x = given.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.stream = current_stream(device);
  // In a model kernels of others stand between multiplies: behind those an early start costs 0.2 us and gains nothing.
  // The pointers are those of tensors, of which the device is known.
  args.flags = FLUTE_NO_DEPENDENT_LAUNCH | FLUTE_POINTERS_KNOWN;
  check(flute_tiled_gemm(&view, &args));
  return y;
}

Tensor gemm_tiled_transposed(const Tensor& y, const Tensor& codes, const Tensor& scales, const Tensor& codebooks,
                             const std::vector<int64_t>& rows, int64_t k, int64_t bits, int64_t group_size) {
  if (!y.is_cuda()) fail("y: expected a tensor on a CUDA device");
  const int32_t device = y.get_device_index();
  const flute_tiled_view view = view_of(codes, scales, codebooks, rows, k, bits, group_size, device);
  if (dtype_of(y, "y") != view.dtype) fail("y: expected the dtype of scales, found another");
  const int64_t n = sum(rows);
  (void)reshaped(y, n, k, "y");
  Tensor weight = make_empty(y, {n, k});
  check(flute_tiled_dequantize(&view, weight.mutable_data_ptr(), current_stream(device)));
  return torch::stable::matmul(y, weight);
}

}  // namespace
}  // namespace flute_torch

STABLE_TORCH_LIBRARY_IMPL(flute, CUDA, library) {
  library.impl("gemm_tiled", TORCH_BOX(&flute_torch::gemm_tiled));
  library.impl("gemm_tiled_forward", TORCH_BOX(&flute_torch::gemm_tiled));
  library.impl("gemm_tiled_transposed", TORCH_BOX(&flute_torch::gemm_tiled_transposed));
}
