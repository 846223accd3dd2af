#include "cuda/measure/cublas.hpp"

#include <dlfcn.h>

#include "base/fail.hpp"

namespace flute::cuda {
namespace {

// The part of cublas_v2.h and library_types.h that is needed; these numbers are cuBLAS's ABI.
using Handle = void*;
constexpr int kSuccess = 0, kNoTranspose = 0, kTranspose = 1, kHalf = 2, kBfloat16 = 14, kCompute32 = 68, kDefault = -1;
using Create = int (*)(Handle*);
using Destroy = int (*)(Handle);
using SetStream = int (*)(Handle, cudaStream_t);
using SetWorkspace = int (*)(Handle, void*, size_t);
using GemmEx = int (*)(Handle, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int,
                       const void*, void*, int, int, int, int);

constexpr size_t kWorkspaceBytes = size_t{64} << 20;

template <typename Function>
Function symbol(void* library, const char* name) {
  return reinterpret_cast<Function>(dlsym(library, name));
}

}  // namespace

Cublas::Cublas(cudaStream_t stream) {
  for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
    if (library_ == nullptr) library_ = dlopen(name, RTLD_NOW);
  }
  if (library_ == nullptr) return;
  const auto create = symbol<Create>(library_, "cublasCreate_v2");
  const auto set_stream = symbol<SetStream>(library_, "cublasSetStream_v2");
  const auto set_workspace = symbol<SetWorkspace>(library_, "cublasSetWorkspace_v2");
  gemm_ = dlsym(library_, "cublasGemmEx");
  if (create == nullptr || set_stream == nullptr || set_workspace == nullptr || gemm_ == nullptr) return;
  Handle handle = nullptr;
  if (create(&handle) != kSuccess) return;
  workspace_ = DeviceBuffer(kWorkspaceBytes);
  handle_ = handle;
  if (set_stream(handle, stream) != kSuccess || set_workspace(handle, workspace_.data(), kWorkspaceBytes) != kSuccess) {
    fail(ErrorCode::kDevice, "cuBLAS: expected to take a stream and a workspace");
  }
}

Cublas::~Cublas() {
  if (handle_ != nullptr) symbol<Destroy>(library_, "cublasDestroy_v2")(handle_);
}

void Cublas::multiply(const void* w, const void* x, void* y, int64_t m, int64_t n, int64_t k, DType dtype) const {
  const float one = 1, zero = 0;
  const int type = dtype == DType::kF16 ? kHalf : kBfloat16;
  // Column-major: y^T = w * x^T.
  const int status = reinterpret_cast<GemmEx>(gemm_)(
      handle_, kTranspose, kNoTranspose, static_cast<int>(n), static_cast<int>(m), static_cast<int>(k), &one, w, type,
      static_cast<int>(k), x, type, static_cast<int>(k), &zero, y, type, static_cast<int>(n), kCompute32, kDefault);
  if (status != kSuccess) fail(ErrorCode::kDevice, "cuBLAS: expected success, found status {}", status);
}

}  // namespace flute::cuda
