#include "cuda/device.hpp"

#include <algorithm>
#include <map>
#include <mutex>

#include "base/fail.hpp"
#include "cuda/prefill/prefill.hpp"

namespace flute::cuda {
namespace {

constexpr int kLeastCapability = 80;  // mma.m16n8k16, cp.async

/// The error is ours to report: a later call of the program must not find it.
cudaError_t cleared(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error;
}

int attribute(cudaDeviceAttr which, int index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, index), "device");
  return value;
}

const char* kind_of(cudaMemoryType type) {
  switch (type) {
    case cudaMemoryTypeDevice:
      return "memory of CUDA device";
    case cudaMemoryTypeManaged:
      return "managed memory of CUDA device";
    default:
      return "host memory";
  }
}

cudaPointerAttributes attributes_of(const void* pointer, std::string_view what) {
  cudaPointerAttributes attributes = {};
  check(cudaPointerGetAttributes(&attributes, pointer), what);
  return attributes;
}

}  // namespace

void check(cudaError_t error, std::string_view what) {
  if (cleared(error) == cudaSuccess) return;
  const ErrorCode code = error == cudaErrorMemoryAllocation         ? ErrorCode::kOutOfMemory
                         : error == cudaErrorNoKernelImageForDevice ? ErrorCode::kUnsupported
                                                                    : ErrorCode::kDevice;
  fail(code, "{}: CUDA: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

namespace {

DeviceLimits open_device(int index) {
  int count = 0, driver = 0;
  if (const cudaError_t error = cleared(cudaGetDeviceCount(&count)); error != cudaSuccess) {
    const bool has_driver = cudaDriverGetVersion(&driver) == cudaSuccess && driver != 0;
    fail(ErrorCode::kUnsupported, "no CUDA device: {}",
         has_driver ? cudaGetErrorString(error) : "no driver is installed");
  }
  if (count == 0) fail(ErrorCode::kUnsupported, "no CUDA device: the driver sees none");
  if (index < 0 || index >= count) {
    fail(ErrorCode::kUnsupported, "no CUDA device {}: expected 0..{}", index, count - 1);
  }
  const int capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor, index) + attribute(cudaDevAttrComputeCapabilityMinor, index);
  if (capability < kLeastCapability) {
    fail(ErrorCode::kUnsupported, "CUDA device {}: expected compute capability {}.{} or more, found {}.{}", index,
         kLeastCapability / 10, kLeastCapability % 10, capability / 10, capability % 10);
  }
  DeviceLimits limits;
  limits.sm_count = attribute(cudaDevAttrMultiProcessorCount, index);
  limits.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  limits.wgmma = kernel_target(index) == 90;
  if (limits.wgmma) {
    const DeviceScope scope(index);
    check(count_resident_clusters(limits), "clusters");
  }
  return limits;
}

}  // namespace

const OpenDevice& opened_device(int index) {
  static std::mutex mutex;
  static std::map<int, OpenDevice> devices;  // its nodes stay where they are
  const std::lock_guard lock(mutex);
  const auto found = devices.find(index);
  if (found != devices.end()) return found->second;
  const OpenDevice device = {open_device(index), kernel_target(index) >= 90};
  return devices.emplace(index, device).first->second;
}

DeviceScope::DeviceScope(int index) : index_(index) {
  check(cudaGetDevice(&before_), "device");
  if (before_ != index_) check(cudaSetDevice(index_), "device");
}

DeviceScope::~DeviceScope() {
  if (before_ != index_) (void)cleared(cudaSetDevice(before_));
}

DeviceBuffer::DeviceBuffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* data = nullptr;
  check(cudaMalloc(&data, bytes), fmt::format("{:.1f} MB of device memory", 1e-6 * static_cast<double>(bytes)));
  data_ = static_cast<std::byte*>(data);
}

DeviceBuffer::~DeviceBuffer() { (void)cleared(cudaFree(data_)); }

bool in_host_memory(const void* pointer, int index, std::string_view what) {
  const cudaPointerAttributes attributes = attributes_of(pointer, what);
  if (attributes.type == cudaMemoryTypeUnregistered || attributes.type == cudaMemoryTypeHost) return true;
  if (attributes.type == cudaMemoryTypeDevice && attributes.device != index) {
    fail(ErrorCode::kInvalidArgument, "{}: expected host memory or memory of CUDA device {}, found {} {}", what, index,
         kind_of(attributes.type), attributes.device);
  }
  return false;
}

void expect_device_memory(const void* pointer, int index, std::string_view what) {
  const cudaPointerAttributes attributes = attributes_of(pointer, what);
  if (attributes.type == cudaMemoryTypeManaged) return;
  if (attributes.type == cudaMemoryTypeDevice && attributes.device == index) return;
  const bool device = attributes.type == cudaMemoryTypeDevice;
  fail(ErrorCode::kInvalidArgument, "{}: expected memory of CUDA device {}, found {}{}", what, index,
       kind_of(attributes.type), device ? fmt::format(" {}", attributes.device) : "");
}

}  // namespace flute::cuda
