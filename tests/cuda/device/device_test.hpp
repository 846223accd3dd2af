#pragma once
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "error_of.hpp"
#include "flute/error.hpp"
#include "flute/gemm.hpp"

namespace flute {

/// What a test cannot go on without.
inline void succeed(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

/// Memory of device 0, filled with 0xff bytes: NaN in every dtype.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) : bytes_(bytes) {
    succeed(cudaMalloc(&data_, bytes == 0 ? 1 : bytes));
    succeed(cudaMemset(data_, 0xff, bytes));
  }
  DeviceMemory(const void* host, size_t bytes) : DeviceMemory(bytes) {
    succeed(cudaMemcpy(data_, host, bytes, cudaMemcpyHostToDevice));
  }
  ~DeviceMemory() { (void)cudaFree(data_); }
  DeviceMemory(DeviceMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  DeviceMemory& operator=(DeviceMemory&&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t bytes() const { return bytes_; }
  std::vector<std::byte> host() const {
    std::vector<std::byte> copy(bytes_);
    succeed(cudaMemcpy(copy.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return copy;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// A stream that runs beside the default one.
class Stream {
 public:
  Stream() { succeed(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { (void)cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  void wait() const { succeed(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A packed matrix with any of its buffers on the device.
class DevicePacked {
 public:
  explicit DevicePacked(const PackedMatrix& matrix)
      : codes_(matrix.codes.data(), matrix.codes.size() * 4),
        scales_(matrix.scales.data(), matrix.scales.size()),
        codebook_(matrix.codebook.data(), matrix.codebook.size() * 4),
        host_(matrix.view()) {}
  /// Bit 0 of `which`: codes on the device, bit 1: scales, bit 2: codebook.
  PackedView view(int which) const {
    PackedView view = host_;
    if ((which & 1) != 0) view.codes = {reinterpret_cast<const uint32_t*>(codes_.data()), view.codes.size()};
    if ((which & 2) != 0) view.scales = scales_.data();
    if ((which & 4) != 0) view.codebook = {reinterpret_cast<const float*>(codebook_.data()), view.codebook.size()};
    return view;
  }

 private:
  DeviceMemory codes_, scales_, codebook_;
  PackedView host_;
};

/// Skips its tests where there is no device.
class OnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no CUDA device";
  }
};

}  // namespace flute
