#pragma once
#include "flute/gemm.hpp"

namespace flute {

/// What a backend makes of a matrix.
struct Matrix::Impl {
  explicit Impl(Device where) : device(where) {}
  virtual ~Impl() = default;
  virtual int64_t n() const = 0;
  virtual int64_t k() const = 0;
  virtual int bits() const = 0;
  virtual int64_t group_size() const = 0;
  virtual int segment_count() const = 0;
  virtual size_t bytes() const = 0;
  virtual PackedMatrix to_packed(int segment) const = 0;  ///< the segment exists
  virtual size_t workspace_bytes(int64_t m, DType dtype) const = 0;
  virtual void multiply(const GemmArgs& args, const Execution& execution) const = 0;

  Device device;
};

}  // namespace flute
