// The PyTorch operator, on LibTorch's stable ABI: one file serves PyTorch 2.10 and every later version.
//
//   flute::gemm(Tensor x, int matrix, int n, Tensor? bias) -> Tensor        x [..., k] -> [..., n]
//   flute::gemm_transposed(Tensor y, int matrix, int k) -> Tensor           y [..., n] -> [..., k], the gradient of x
//
// `matrix` is what flute_torch_add returned. Numbers are never used twice, so one that has been removed is an error and
// not a multiply with something else.
#include <flute/flute.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Matrix {
  explicit Matrix(flute_matrix* given) : handle(given) {
    info.size = sizeof(info);
    flute_matrix_get_info(handle, &info);
  }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;
  ~Matrix() { flute_matrix_destroy(handle); }

  flute_matrix* handle;
  flute_matrix_info info = {};
};

std::mutex mutex;  // of what follows
std::unordered_map<int64_t, std::shared_ptr<Matrix>> matrices;
int64_t last_number = 0;

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::string message;
  ((message += parts), ...);
  throw std::runtime_error(message);
}

void check(flute_status status) {
  if (status != FLUTE_OK) throw std::runtime_error(flute_last_error_message());
}

std::shared_ptr<Matrix> find(int64_t number) {
  const std::lock_guard lock(mutex);
  const auto found = matrices.find(number);
  if (found == matrices.end()) fail("matrix: expected the number of a loaded matrix, found ", std::to_string(number));
  return found->second;
}

/// A pool of as many threads as PyTorch uses. A forked process has none of its parent's threads and makes its own; the
/// parent's pool is left alone, since ending it would wait for them.
std::shared_ptr<flute_threads> thread_pool() {
  static std::shared_ptr<flute_threads> pool;
  static pid_t owner = 0;
  const std::lock_guard lock(mutex);
  const auto wanted = static_cast<int32_t>(torch::stable::get_num_threads());
  if (owner != getpid()) {
    if (pool) new std::shared_ptr<flute_threads>(pool);  // never destroyed
    pool.reset();
    owner = getpid();
  }
  if (!pool || flute_threads_size(pool.get()) != wanted) {
    flute_threads* made = nullptr;
    check(flute_threads_create(wanted, &made));
    pool.reset(made, flute_threads_destroy);
  }
  return pool;
}

flute_dtype dtype_of(const Tensor& tensor, const char* argument) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return FLUTE_F32;
    case ScalarType::Half:
      return FLUTE_F16;
    case ScalarType::BFloat16:
      return FLUTE_BF16;
    default:
      fail(argument, ": expected float32, float16 or bfloat16, found scalar type ",
           std::to_string(static_cast<int>(tensor.scalar_type())));
  }
}

/// The shape of `tensor` with its last dimension, which must be `from`, replaced with `to`.
std::vector<int64_t> reshaped(const Tensor& tensor, int64_t from, int64_t to, const char* argument) {
  std::vector<int64_t> shape(tensor.sizes().begin(), tensor.sizes().end());
  if (!tensor.is_cpu()) fail(argument, ": expected a tensor on the CPU, as the matrix is");
  if (shape.empty() || shape.back() != from) {
    fail(argument, ": expected a last dimension of ", std::to_string(from), ", found ",
         shape.empty() ? "none" : std::to_string(shape.back()));
  }
  shape.back() = to;
  return shape;
}

void expect_size(int64_t found, int64_t expected, const char* argument) {
  if (found != expected) fail(argument, ": expected ", std::to_string(expected), ", found ", std::to_string(found));
}

Tensor gemm(const Tensor& x, int64_t number, int64_t n, const std::optional<Tensor>& bias) {
  const std::shared_ptr<Matrix> matrix = find(number);
  expect_size(n, matrix->info.n, "n");
  flute_gemm_args args = {};
  args.size = sizeof(args);
  args.dtype = dtype_of(x, "x");
  const std::vector<int64_t> shape = reshaped(x, matrix->info.k, n, "x");
  std::optional<Tensor> bias_values;
  if (bias) {
    if (bias->scalar_type() != x.scalar_type()) fail("bias: expected the dtype of x, found another");
    if (bias->dim() != 1 || !bias->is_cpu()) fail("bias: expected a vector on the CPU");
    expect_size(bias->size(0), n, "bias: size");
    bias_values = torch::stable::contiguous(*bias);
    args.bias = bias_values->data_ptr();
  }
  const Tensor rows = torch::stable::contiguous(x);
  Tensor y = torch::stable::new_empty(x, shape);
  args.m = rows.numel() / matrix->info.k;
  args.x = rows.data_ptr();
  args.y = y.data_ptr();
  const auto pool = thread_pool();
  args.threads = pool.get();
  check(flute_gemm(matrix->handle, &args));
  return y;
}

Tensor gemm_transposed(const Tensor& y, int64_t number, int64_t k) {
  const std::shared_ptr<Matrix> matrix = find(number);
  expect_size(k, matrix->info.k, "k");
  const flute_dtype dtype = dtype_of(y, "y");
  const std::vector<int64_t> shape = reshaped(y, matrix->info.n, k, "y");
  flute_packed* made = nullptr;
  check(flute_matrix_to_packed(matrix->handle, 0, &made));
  const std::unique_ptr<flute_packed, decltype(&flute_packed_destroy)> packed(made, flute_packed_destroy);
  flute_packed_view view = {};
  view.size = sizeof(view);
  check(flute_packed_get_view(packed.get(), &view));
  const Tensor weight = torch::stable::new_empty(y, {view.n, view.k});
  check(flute_dequantize(&view, 0, view.n, dtype, weight.data_ptr()));
  return torch::stable::matmul(y, weight);
}

}  // namespace

extern "C" {

/// Takes a matrix of one segment on the CPU; returns its number. Not of the stable ABI: called through ctypes.
__attribute__((visibility("default"))) int64_t flute_torch_add(flute_matrix* matrix) {
  auto owned = std::make_shared<Matrix>(matrix);
  const std::lock_guard lock(mutex);
  matrices.emplace(++last_number, std::move(owned));
  return last_number;
}

/// Forgets a matrix; a multiply that is using it keeps it until it is done.
__attribute__((visibility("default"))) void flute_torch_remove(int64_t number) {
  std::shared_ptr<Matrix> removed;
  const std::lock_guard lock(mutex);
  const auto found = matrices.find(number);
  if (found == matrices.end()) return;
  removed = std::move(found->second);
  matrices.erase(found);
}

}  // extern "C"

STABLE_TORCH_LIBRARY(flute, library) {
  library.def("gemm(Tensor x, int matrix, int n, Tensor? bias) -> Tensor");
  library.def("gemm_transposed(Tensor y, int matrix, int k) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flute, CPU, library) {
  library.impl("gemm", TORCH_BOX(&gemm));
  library.impl("gemm_transposed", TORCH_BOX(&gemm_transposed));
}
