// What the parts of the laboratory share: a case, how it is launched, and memory to measure on.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <string>

#include "cuda/device.hpp"
#include "cuda/measure/cublas.hpp"
#include "cuda/measure/graph.hpp"
#include "cuda/measure/times.hpp"
#include "cuda/multiply.hpp"
#include "flute/dtype.hpp"

namespace flute::cuda::lab {

/// One multiply; `label` is the set that it belongs to.
struct Case {
  Shape shape;
  Format format;
  PlanWish wish;
  int family = 0;  // 0: the plan's choice; 1: decode, 2: prefill, 3: prefill on mma
  int segments = 1;
  int rest = 40;  // milliseconds of idleness before it is timed
  bool dependent = true;
  bool by_turns = false;   // with cuBLAS, not each alone
  bool sustained = false;  // measured so as well
  std::string label;

  DType dtype() const { return format.bf16 ? DType::kBF16 : DType::kF16; }
  int groups() const { return format.group_size < 0 ? 1 : (shape.k + format.group_size - 1) / format.group_size; }
};

/// The words key=value of a line.
using Keys = std::map<std::string, std::string>;
Keys parse(const std::string& line);
int number(const Keys& keys, const std::string& key, int otherwise);
Case to_case(const Keys& keys);
std::string describe(const Case& one, const DeviceLimits& limits);

/// Limits of a card by its name (H100, A100, A6000), whose plans another card may try.
DeviceLimits limits_of(const std::string& card);

std::string plan_text(const Case& one, const DeviceLimits& limits);
/// The shape with its row segments, as even as boundaries at multiples of 32 rows let them be.
Shape shape_of(const Case& one);
/// May be invalid.
MultiplyPlan plan_of(const Case& one, const DeviceLimits& limits);
/// Everything but the addresses.
MultiplyArguments make_arguments(const Case& one);
/// Dependent launch is left out where the kernels' target has none.
void launch(const MultiplyPlan& plan, MultiplyArguments arguments, const Case& one, cudaStream_t stream);

template <typename T>
class Array {
 public:
  explicit Array(size_t count) : count_(count), memory_(count * sizeof(T)) {}
  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  size_t count() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }

 private:
  size_t count_;
  DeviceBuffer memory_;
};

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream"); }
  ~Stream() { (void)cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "stream"); }

 private:
  cudaStream_t stream_ = nullptr;
};

constexpr size_t kRotate = size_t{210} << 20;  // what launches rotate over: more than four times 50 MB of L2

/// What is measured of a case: of a launch, or seconds of one.
struct Measured {
  Times ours, floor, dense;
  double sustained = 0, sustained_dense = 0;
  uint32_t clock = 0;  ///< the multiprocessors', MHz, right after the multiply
};

/// Memory full of random weights, and times of what runs on it.
class Bench {
 public:
  explicit Bench(const DeviceLimits& limits);

  /// The best of a few plain kernels that read so many bytes, without dependent launch.
  Times floor(size_t bytes);
  /// cuBLAS in fp16; zero where it is not found.
  Times dense(int m, int n, int k);
  Measured measure(const Case& one);
  void once(const Case& one);

  /// A case's arguments with copy `copy` of its weights.
  MultiplyArguments arguments(const Case& one, int copy = 0) const;
  static size_t code_bytes(const Case& one);
  static size_t scale_bytes(const Case& one);
  /// Codes, scales and table: what the floor reads.
  static size_t bytes(const Case& one);

  const DeviceLimits& limits() const { return limits_; }
  cudaStream_t stream() const { return stream_.get(); }
  const uint8_t* pool() const { return pool_.data(); }  ///< random bits
  size_t pool_bytes() const { return pool_.bytes(); }
  const uint8_t* scale_pool() const { return reinterpret_cast<const uint8_t*>(scales_.data()); }  ///< fp16
  size_t scale_pool_bytes() const { return scales_.bytes(); }
  uint16_t* x() const { return x_.data(); }
  uint16_t* y() const { return y_.data(); }
  uint32_t* sink() const { return sink_.data(); }

 private:
  Graph graph(const Case& one);
  Graph dense_graph(int m, int n, int k);
  double sustained_dense(int m, int n, int k);
  /// The multiprocessors' clock at the moment, MHz.
  uint32_t clock();

  DeviceLimits limits_;
  Stream stream_;
  Array<uint8_t> pool_;
  Array<uint16_t> dense_, scales_, x_, y_;
  Array<uint32_t> sink_;
  Cublas cublas_;
  std::map<size_t, Times> floors_;
  std::map<std::string, Times> dense_times_;
  std::map<std::string, double> sustained_dense_;
};

inline double microseconds(double seconds) { return 1e6 * seconds; }

// The modes, each printing JSON. They return the exit code.
int run_check(int draws, uint64_t seed, const DeviceLimits& limits);
int run_shapes(const DeviceLimits& limits);
int run_instances(int part, int parts, const DeviceLimits& limits);
int run_time(const char* file, const DeviceLimits& limits);
int run_once(const Case& one, const DeviceLimits& limits);
int run_mma();
/// One line of a case file that is no multiply of ours alone: a JSON object without its braces.
std::string time_reader(Bench& bench, const Keys& keys);
std::string time_mixed(Bench& bench, const Keys& keys);
std::string time_chain(Bench& bench, const Keys& keys);

}  // namespace flute::cuda::lab
