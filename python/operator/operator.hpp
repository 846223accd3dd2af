// What the operator's parts share.
#pragma once

#include <flute/flute.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace flute_torch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string text(const char* part) { return part; }
inline std::string text(int64_t part) { return std::to_string(part); }

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw std::runtime_error((text(parts) + ...));
}

inline void check(flute_status status) {
  if (status != FLUTE_OK) throw std::runtime_error(flute_last_error_message());
}

inline flute_dtype dtype_of(const Tensor& tensor, const char* argument) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return FLUTE_F32;
    case ScalarType::Half:
      return FLUTE_F16;
    case ScalarType::BFloat16:
      return FLUTE_BF16;
    default:
      fail(argument, ": expected float32, float16 or bfloat16, found scalar type ",
           static_cast<int64_t>(tensor.scalar_type()));
  }
}

/// The shape of `tensor` with its last dimension, which must be `from`, replaced with `to`.
inline std::vector<int64_t> reshaped(const Tensor& tensor, int64_t from, int64_t to, const char* argument) {
  std::vector<int64_t> shape(tensor.sizes().begin(), tensor.sizes().end());
  if (shape.empty()) fail(argument, ": expected a last dimension of ", from, ", found none");
  if (shape.back() != from) fail(argument, ": expected a last dimension of ", from, ", found ", shape.back());
  shape.back() = to;
  return shape;
}

// PyTorch's functions are found by their names in every call, which takes as long as they do. So these go without where
// that is possible.

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

/// Contiguous, of the dtype and on the device of `like`.
inline Tensor make_empty(const Tensor& like, const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
  }
  int32_t dtype = 0, device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                                                  dtype, device, like.get_device_index(), &made));
  return Tensor(made);
}

/// [n] of x's dtype on its device, contiguous.
inline Tensor checked_bias(const Tensor& bias, const Tensor& x, int64_t n) {
  if (bias.scalar_type() != x.scalar_type()) fail("bias: expected the dtype of x, found another");
  if (bias.is_cpu() != x.is_cpu() || bias.get_device_index() != x.get_device_index()) {
    fail("bias: expected the device of x, found another");
  }
  if (bias.dim() != 1) fail("bias: expected a vector, found ", bias.dim(), " dimensions");
  if (bias.size(0) != n) fail("bias: expected ", n, " values, found ", bias.size(0));
  return as_contiguous(bias);
}

}  // namespace flute_torch
