#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <mutex>
#include <optional>

#include "flute/threads.hpp"

namespace flute::cuda {

/// Copies from host memory to a device, in the order of a stream. The driver's own copy from memory that is not pinned
/// has one thread carry it to pinned memory, and of a mapped file that thread meets every page for the first time. Here
/// several do, each a piece ahead of the device.
///
/// The pinned memory, 32 MB for each device that large copies went to, is kept until the process ends. One Upload at a
/// time has it, others wait.
class Upload {
 public:
  /// To device `index`, the current one.
  Upload(int index, cudaStream_t stream) : index_(index), stream_(stream) {}

  /// When it returns, the source has been read.
  void copy(void* to, const void* from, size_t bytes);

 private:
  struct Pinned;
  Pinned* pinned();

  int index_;
  cudaStream_t stream_;
  std::unique_lock<std::mutex> lock_;  // while it has pinned memory
  std::optional<ThreadPool> threads_;
};

}  // namespace flute::cuda
