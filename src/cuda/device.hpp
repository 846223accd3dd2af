#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <string_view>
#include <utility>

#include "cuda/plan.hpp"

namespace flute::cuda {

/// Throws kOutOfMemory, kUnsupported (kernels are not built for the device) or kDevice, with `what` at the start of the
/// message, unless `error` is cudaSuccess.
void check(cudaError_t error, std::string_view what);

/// What is asked of a device once, for calls that must not take long.
struct OpenDevice {
  DeviceLimits limits;              ///< what plans need to know
  bool waits_for_previous = false;  ///< its kernels are of a target with programmatic dependent launch
};

/// Lives as long as the process. Throws kUnsupported where there is no such device, or its kernels are not built.
const OpenDevice& opened_device(int index);

/// The compute capability that the kernels a device runs were compiled for: 90 on Hopper (sm_90a), else 80. The driver
/// takes the machine code that fits its card best. CUDA_FORCE_PTX_JIT=1 in the environment makes it compile the PTX
/// instead, which the library has for 80 alone: that is how the target for earlier cards runs, and is tested, on
/// Hopper. Code for 80 has no griddepcontrol instructions: launched as a dependent launch it would not wait for its
/// predecessor.
int kernel_target(int index);

/// Makes a device the calling thread's current one for a scope.
class DeviceScope {
 public:
  explicit DeviceScope(int index);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0, index_ = 0;
};

/// Memory of the current device. May be empty.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept : DeviceBuffer() { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Does the buffer lie in host memory (or on device `index`, then false)? Throws kInvalidArgument, naming `what`, where
/// it lies on another device.
bool in_host_memory(const void* pointer, int index, std::string_view what);

/// Throws kInvalidArgument, naming `what`, unless kernels of device `index` may use the pointer: device or managed
/// memory.
void expect_device_memory(const void* pointer, int index, std::string_view what);

}  // namespace flute::cuda
