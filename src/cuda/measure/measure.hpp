#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "cuda/measure/times.hpp"
#include "cuda/plan.hpp"
#include "flute/gemm.hpp"

namespace flute::cuda {

/// A device's name and limits; throws as Matrix::from_packed does where it is not there.
std::string device_name(int index);
DeviceLimits device_limits(int index);

struct Measured {
  Times ours;                  ///< with programmatic dependent launch
  Times plain_launch;          ///< without it
  Times floor;                 ///< a plain kernel reads the same bytes once, without it
  std::optional<Times> dense;  ///< cuBLAS on a matrix of the activations' dtype, where libcublas is found
};

/// Times the multiply with one packed matrix on a device. Copies of the matrix, and of what it is compared with, rotate
/// over more than four times the L2 cache, so that every launch reads from memory; launches are replayed as a graph.
class Measure {
 public:
  /// `matrix` in host memory, `dtype` of the activations. Throws as Matrix::from_packed does.
  Measure(Device device, const PackedView& matrix, DType dtype);
  ~Measure();

  Measured multiply(int64_t m);
  /// Packed to tiled on the device, and back.
  Times tile();
  Times untile();
  size_t copies() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace flute::cuda
