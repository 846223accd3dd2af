#include "cuda/measure/measure.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/layout.hpp"
#include "cuda/measure/cublas.hpp"
#include "cuda/measure/graph.hpp"
#include "cuda/measure/kernels.hpp"
#include "cuda/tiling.hpp"

namespace flute::cuda {
namespace {

constexpr size_t kPage = 4096;  // copies start at multiples of it

/// A stream of its own, and the device current for as long as it lives.
class ScopedStream {
 public:
  explicit ScopedStream(int device) : scope_(device) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "measuring");
  }
  ~ScopedStream() { (void)cudaStreamDestroy(stream_); }
  ScopedStream(const ScopedStream&) = delete;
  ScopedStream& operator=(const ScopedStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  DeviceScope scope_;
  cudaStream_t stream_ = nullptr;
};

/// Bytes that things rotate over: more than four times the L2 cache, at most an eighth of the device's memory.
size_t rotation_bytes(int device) {
  int cache = 0;
  size_t available = 0, total = 0;
  check(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device), "measuring");
  check(cudaMemGetInfo(&available, &total), "measuring");
  return std::min(size_t{4} * static_cast<size_t>(cache) + (size_t{8} << 20), total / 8);
}

/// Memory for things of `bytes` each that rotate.
class Rotation {
 public:
  Rotation() = default;
  Rotation(size_t bytes, size_t rotate)
      : stride_((bytes + kPage - 1) / kPage * kPage), count_(rotate / stride_ + 2), memory_(stride_ * count_) {}
  std::byte* at(int index) const { return memory_.data() + static_cast<size_t>(index) % count_ * stride_; }
  size_t count() const { return count_; }
  size_t bytes() const { return memory_.bytes(); }

 private:
  size_t stride_ = kPage, count_ = 0;
  DeviceBuffer memory_;
};

/// Launches in a graph: every copy at least once, and enough that beginning and end do not count.
int launches(size_t copies) { return static_cast<int>(std::max<size_t>(copies, 20)); }

}  // namespace

struct Measure::Impl {
  Impl(Device where, const PackedView& matrix, DType activations)
      : device(where),
        dtype(activations),
        limits(opened_device(where.index).limits),
        stream(where.index),
        cublas(stream.get()) {
    const size_t rotate = rotation_bytes(where.index);
    matrices.push_back(Matrix::from_packed(where, {&matrix, 1}, {.dtype = dtype}));
    const size_t bytes = matrices[0].bytes();
    for (size_t i = 1; i < rotate / bytes + 2; ++i) {
      matrices.push_back(Matrix::from_packed(where, {&matrix, 1}, {.dtype = dtype}));
    }
    plain = Rotation(bytes, rotate);
    fill(plain.at(0), plain.bytes() / 2);
    sink = DeviceBuffer(sizeof(uint32_t));
    if (cublas.found()) {
      dense = Rotation(static_cast<size_t>(matrix.n * matrix.k) * 2, rotate);
      fill(dense.at(0), dense.bytes() / 2);
    }
  }

  void fill(void* out, size_t count) const {
    check(fill_uniform(out, count, dtype, -1, 1, /*seed=*/1, stream.get()), "measuring");
    check(cudaStreamSynchronize(stream.get()), "measuring");
  }

  Times floor() {
    const size_t bytes = matrices[0].bytes() / 16 * 16;
    if (floor_times.median > 0) return floor_times;
    for (int variant = 0; variant < kReadVariants; ++variant) {
      const Times times = time_graph(stream.get(), launches(plain.count()), [&](int i) {
        check(read_once(plain.at(i), bytes, variant, limits.sm_count, reinterpret_cast<uint32_t*>(sink.data()),
                        stream.get()),
              "measuring");
      });
      if (variant == 0 || times.median < floor_times.median) floor_times = times;
    }
    return floor_times;
  }

  Graph ours(const GemmArgs& args, bool dependent_launch) const {
    return {stream.get(), launches(matrices.size()), [&](int i) {
              gemm(matrices[static_cast<size_t>(i) % matrices.size()], args,
                   {.stream = stream.get(), .dependent_launch = dependent_launch});
            }};
  }

  Device device;
  DType dtype;
  DeviceLimits limits;
  ScopedStream stream;
  Cublas cublas;
  std::vector<Matrix> matrices;
  Rotation plain, dense;
  DeviceBuffer sink;
  Times floor_times;
};

std::string device_name(int index) {
  (void)opened_device(index);
  cudaDeviceProp properties = {};
  check(cudaGetDeviceProperties(&properties, index), "device");
  return properties.name;
}

DeviceLimits device_limits(int index) { return opened_device(index).limits; }

Measure::Measure(Device device, const PackedView& matrix, DType dtype)
    : impl_(std::make_unique<Impl>(device, matrix, dtype)) {}
Measure::~Measure() = default;

size_t Measure::copies() const { return impl_->matrices.size(); }

Measured Measure::multiply(int64_t m) {
  const Matrix& matrix = impl_->matrices[0];
  const int64_t n = matrix.n(), k = matrix.k();
  const DeviceBuffer x(static_cast<size_t>(m * k) * 2), y(static_cast<size_t>(m * n) * 2);
  impl_->fill(x.data(), static_cast<size_t>(m * k));
  GemmArgs args;
  args.m = m;
  args.x = x.data();
  args.y = y.data();
  args.dtype = impl_->dtype;
  Measured measured;
  measured.floor = impl_->floor();
  const Graph ours = impl_->ours(args, true), plain = impl_->ours(args, false);
  std::vector<const Graph*> graphs = {&ours, &plain};
  std::optional<Graph> dense;
  if (impl_->cublas.found()) {
    const auto launch = [&](int i) {
      impl_->cublas.multiply(impl_->dense.at(i), x.data(), y.data(), m, n, k, impl_->dtype);
    };
    launch(0);  // what cuBLAS sets up in its first call is no part of a graph
    check(cudaStreamSynchronize(impl_->stream.get()), "measuring");
    dense.emplace(impl_->stream.get(), launches(impl_->dense.count()), launch);
    graphs.push_back(&*dense);
  }
  const std::vector<Times> times = time_by_turns(graphs);
  measured.ours = times[0], measured.plain_launch = times[1];
  if (dense) measured.dense = times[2];
  return measured;
}

Times Measure::tile() {
  const Matrix& matrix = impl_->matrices[0];
  const int bits = matrix.bits(), k = static_cast<int>(matrix.k());
  const Rotation packed(static_cast<size_t>(matrix.n() * k) * bits / 8, impl_->plain.bytes());
  impl_->fill(packed.at(0), packed.bytes() / 2);
  return time_graph(impl_->stream.get(), launches(packed.count()), [&](int i) {
    check(tile_codes(bits, reinterpret_cast<const uint32_t*>(packed.at(i)), {matrix.n(), 0, matrix.n()}, k,
                     impl_->plain.at(i), impl_->stream.get()),
          "measuring");
  });
}

Times Measure::untile() {
  const Matrix& matrix = impl_->matrices[0];
  const int bits = matrix.bits(), k = static_cast<int>(matrix.k());
  const Rotation packed(static_cast<size_t>(matrix.n() * k) * bits / 8, impl_->plain.bytes());
  return time_graph(impl_->stream.get(), launches(packed.count()), [&](int i) {
    check(untile_codes(bits, impl_->plain.at(i), {matrix.n(), 0, matrix.n()}, k,
                       reinterpret_cast<uint32_t*>(packed.at(i)), impl_->stream.get()),
          "measuring");
  });
}

}  // namespace flute::cuda
