// flute::gemm and its gradient on the CPU.
//
// The CPU multiplies with a layout of its own. Whoever multiplies with the same packed tensors again has it made once
// and kept by flute_torch_add, under their addresses; tensors that nobody has announced (those of an exported program
// in another process) are made ready in every call, to the same result.
#include <unistd.h>

#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "operator.hpp"

namespace flute_torch {
namespace {

using Packed = std::unique_ptr<flute_packed, decltype(&flute_packed_destroy)>;

struct Matrix {
  Matrix(const flute_packed_view& given, flute_matrix* made) : view(given), handle(made) {}
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;
  ~Matrix() { flute_matrix_destroy(handle); }

  bool is_of(const flute_packed_view& other) const {
    return view.n == other.n && view.k == other.k && view.bits == other.bits && view.group_size == other.group_size &&
           view.codes == other.codes && view.scales == other.scales && view.offsets == other.offsets &&
           view.codebook == other.codebook && view.codebook_rows == other.codebook_rows &&
           view.scale_dtype == other.scale_dtype;
  }

  flute_packed_view view;
  flute_matrix* handle;
};

/// Status and matrix of a view.
flute_status make(const flute_packed_view& view, flute_threads* threads, std::shared_ptr<Matrix>& matrix) {
  const flute_packed_view* const segment = &view;
  flute_matrix* made = nullptr;
  const flute_status status = flute_matrix_create({FLUTE_CPU, 0}, FLUTE_F32, &segment, 1, threads, &made);
  if (status == FLUTE_OK) matrix = std::make_shared<Matrix>(view, made);
  return status;
}

std::mutex mutex;  // of what follows
struct Kept {
  int64_t number;
  std::shared_ptr<Matrix> matrix;
};
std::unordered_multimap<const void*, Kept> kept;  // by the address of the codes
int64_t last_number = 0;

/// One that is kept, or null.
std::shared_ptr<Matrix> find(const flute_packed_view& view) {
  const std::lock_guard lock(mutex);
  const auto [begin, end] = kept.equal_range(view.codes);
  for (auto one = begin; one != end; ++one) {
    if (one->second.matrix->is_of(view)) return one->second.matrix;
  }
  return nullptr;
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

void expect(const Tensor& tensor, const std::vector<int64_t>& shape, const char* argument) {
  if (!tensor.is_cpu() || !tensor.is_contiguous()) fail(argument, ": expected a contiguous tensor on the CPU");
  const auto found = tensor.sizes();
  if (std::vector<int64_t>(found.begin(), found.end()) == shape) return;
  std::string expected;
  for (const int64_t size : shape) expected += (expected.empty() ? "" : ", ") + std::to_string(size);
  fail(argument, ": expected shape [", expected.c_str(), "], found another");
}

/// The tensors as the library sees them, while they live. Sizes are checked here, values when a matrix is made of it.
flute_packed_view view_of(const Tensor& packed, const Tensor& scales, const Tensor& codebook,
                          const std::optional<Tensor>& offsets, int64_t bits, int64_t group_size) {
  if (bits < 1 || bits > 8) fail("bits: expected 1..8, found ", bits);
  if (packed.scalar_type() != ScalarType::Int || packed.dim() != 2 || packed.size(1) == 0 ||
      packed.size(1) % bits != 0) {
    fail("packed: expected int32 [N, K * ", bits, " / 32]");
  }
  flute_packed_view view = {};
  view.size = sizeof(view);
  view.n = packed.size(0);
  view.k = packed.size(1) / bits * 32;
  view.group_size = group_size;
  view.bits = static_cast<int32_t>(bits);
  view.scale_dtype = dtype_of(scales, "scales");
  view.codebook_rows = codebook.dim() == 2 ? view.n : 1;
  const int64_t groups = group_size > 0 ? (view.k + group_size - 1) / group_size : 1;
  expect(packed, {view.n, view.k / 32 * bits}, "packed");
  expect(scales, {view.n, groups}, "scales");
  const int64_t entries = int64_t{1} << bits;
  expect(codebook, codebook.dim() == 2 ? std::vector{view.n, entries} : std::vector{entries}, "codebook");
  if (codebook.scalar_type() != ScalarType::Float) fail("codebook: expected float32");
  if (offsets) {
    expect(*offsets, {view.n, groups}, "offsets");
    if (offsets->scalar_type() != scales.scalar_type()) fail("offsets: expected the dtype of scales, found another");
    view.offsets = offsets->const_data_ptr();
  }
  view.codes = static_cast<const uint32_t*>(packed.const_data_ptr());
  view.scales = scales.const_data_ptr();
  view.codebook = static_cast<const float*>(codebook.const_data_ptr());
  return view;
}

Tensor gemm(const Tensor& x, const Tensor& packed, const Tensor& scales, const Tensor& codebook,
            const std::optional<Tensor>& offsets, const std::optional<Tensor>& bias, int64_t bits, int64_t group_size) {
  const flute_packed_view view = view_of(packed, scales, codebook, offsets, bits, group_size);
  flute_gemm_args args = {};
  args.size = sizeof(args);
  args.dtype = dtype_of(x, "x");
  if (!x.is_cpu()) fail("x: expected a tensor on the CPU, as packed is");
  const std::vector<int64_t> shape = reshaped(x, view.k, view.n, "x");
  std::optional<Tensor> bias_values;
  if (bias) {
    bias_values = checked_bias(*bias, x, view.n);
    args.bias = bias_values->const_data_ptr();
  }
  const Tensor rows = as_contiguous(x);
  Tensor y = make_empty(x, shape);
  args.m = rows.numel() / view.k;
  args.x = rows.const_data_ptr();
  args.y = y.mutable_data_ptr();
  const auto pool = thread_pool();
  args.threads = pool.get();
  std::shared_ptr<Matrix> matrix = find(view);
  if (!matrix) check(make(view, pool.get(), matrix));
  check(flute_gemm(matrix->handle, &args));
  return y;
}

Tensor gemm_transposed(const Tensor& y, const Tensor& packed, const Tensor& scales, const Tensor& codebook,
                       const std::optional<Tensor>& offsets, int64_t bits, int64_t group_size) {
  const flute_packed_view view = view_of(packed, scales, codebook, offsets, bits, group_size);
  const flute_dtype dtype = dtype_of(y, "y");
  if (!y.is_cpu()) fail("y: expected a tensor on the CPU, as packed is");
  (void)reshaped(y, view.n, view.k, "y");
  Tensor weight = make_empty(y, {view.n, view.k});
  check(flute_dequantize(&view, 0, view.n, dtype, weight.mutable_data_ptr()));
  return torch::stable::matmul(y, weight);
}

}  // namespace
}  // namespace flute_torch

// Not of the stable ABI: called through ctypes.
extern "C" {

/// Makes and keeps what multiplies with the tensors at these addresses, until flute_torch_remove of *number. Until then
/// they must stay what they are.
__attribute__((visibility("default"))) flute_status flute_torch_add(const flute_packed_view* view,
                                                                    flute_threads* threads, int64_t* number) {
  using namespace flute_torch;  // NOLINT(google-build-using-namespace)
  try {
    std::shared_ptr<Matrix> matrix = find(*view);
    if (!matrix) {
      const flute_status status = make(*view, threads, matrix);
      if (status != FLUTE_OK) return status;
    }
    const std::lock_guard lock(mutex);
    *number = ++last_number;
    kept.emplace(view->codes, Kept{*number, std::move(matrix)});
    return FLUTE_OK;
  } catch (...) {
    return FLUTE_OUT_OF_MEMORY;
  }
}

/// Forgets it; a multiply that is using it keeps it until it is done.
__attribute__((visibility("default"))) void flute_torch_remove(const void* codes, int64_t number) {
  using namespace flute_torch;  // NOLINT(google-build-using-namespace)
  std::shared_ptr<Matrix> removed;
  const std::lock_guard lock(mutex);
  const auto [begin, end] = kept.equal_range(codes);
  for (auto one = begin; one != end; ++one) {
    if (one->second.number != number) continue;
    removed = std::move(one->second.matrix);
    kept.erase(one);
    return;
  }
}

}  // extern "C"

STABLE_TORCH_LIBRARY_IMPL(flute, CPU, library) {
  library.impl("gemm", TORCH_BOX(&flute_torch::gemm));
  library.impl("gemm_forward", TORCH_BOX(&flute_torch::gemm));
  library.impl("gemm_transposed", TORCH_BOX(&flute_torch::gemm_transposed));
}
