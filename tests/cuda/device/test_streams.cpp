// How calls behave on streams and in graphs.
#include <algorithm>
#include <memory>

#include "base/seed.hpp"
#include "cuda/device/device_test.hpp"
#include "cuda/device/work.hpp"
#include "cuda/random_matrix.hpp"

namespace flute {
namespace {

class CudaStreams : public OnDevice {
 protected:
  static constexpr int64_t kN = 2048, kK = 2048;

  static Matrix make_matrix(std::mt19937_64& random, int bits) {
    Draw draw;
    draw.rows = {kN};
    draw.k = kK;
    draw.bits = bits;
    return Matrix::from_packed(kCudaDevice, views_of(random_segments(random, draw)));
  }

  static GemmArgs arguments(const DeviceMemory& x, const DeviceMemory& y, int64_t m) {
    GemmArgs args;
    args.m = m;
    args.x = x.data();
    args.y = y.data();
    args.dtype = DType::kF16;
    return args;
  }

  static size_t x_bytes(int64_t m) { return static_cast<size_t>(m * kK) * 2; }
  static size_t y_bytes(int64_t m) { return static_cast<size_t>(m * kN) * 2; }
};

// A serving engine captures its first call ever.
TEST_F(CudaStreams, TheFirstCallOfAMatrixMayBeCaptured) {
  auto random = fresh_random();
  const Stream stream;
  for (const int bits : {4, 3, 2}) {
    for (const int64_t m : {1, 9, 17, 33, 200, 512}) {
      const DeviceMemory x(x_bytes(m)), y(y_bytes(m)), plain(y_bytes(m));
      fill_uniform(x.data(), DType::kF16, m * kK, random());
      succeed(cudaDeviceSynchronize());
      const Matrix matrix = make_matrix(random, bits);
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t exec = nullptr;
      succeed(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal));
      gemm(matrix, arguments(x, y, m), {.stream = stream.get()});
      succeed(cudaStreamEndCapture(stream.get(), &graph));
      succeed(cudaGraphInstantiate(&exec, graph, 0));
      for (int replay = 0; replay < 3; ++replay) {
        succeed(cudaMemset(y.data(), 0xff, y.bytes()));
        succeed(cudaDeviceSynchronize());
        succeed(cudaGraphLaunch(exec, stream.get()));
        stream.wait();
        gemm(matrix, arguments(x, plain, m), {.stream = stream.get()});
        stream.wait();
        ASSERT_TRUE(y.host() == plain.host()) << bits << " bits, " << m << " tokens, replay " << replay;
      }
      succeed(cudaGraphExecDestroy(exec));
      succeed(cudaGraphDestroy(graph));
    }
  }
}

// Run to run, with and without dependent launch, alone and beside another stream's work: the same bits.
TEST_F(CudaStreams, TheSameCallGivesTheSameBits) {
  auto random = fresh_random();
  const Stream stream, other;
  for (const int bits : {4, 3, 2}) {
    const Matrix matrix = make_matrix(random, bits), load = make_matrix(random, 4);
    for (const int64_t m : {1, 8, 16, 24, 32, 40, 64, 128, 257, 600}) {
      const DeviceMemory x(x_bytes(m)), y(y_bytes(m)), noise(y_bytes(m));
      fill_uniform(x.data(), DType::kF16, m * kK, random());
      succeed(cudaDeviceSynchronize());
      std::vector<std::byte> first;
      for (int i = 0; i < 100; ++i) {
        succeed(cudaMemsetAsync(y.data(), 0xff, y.bytes(), stream.get()));
        if (i >= 50) {
          for (int j = 0; j < 3; ++j) gemm(load, arguments(x, noise, m), {.stream = other.get()});
        }
        gemm(matrix, arguments(x, y, m), {.stream = stream.get(), .dependent_launch = i % 2 == 0});
        stream.wait();
        const std::vector<std::byte> bytes = y.host();
        if (first.empty()) first = bytes;
        ASSERT_TRUE(bytes == first) << bits << " bits, " << m << " tokens, run " << i;
      }
      other.wait();
    }
  }
}

// With dependent launch a call begins before its predecessor has ended. It must not read x before that has written it,
// nor write y before that has read it; and the next kernel must find y complete.
TEST_F(CudaStreams, DependentLaunchKeepsTheOrderOfMemory) {
  auto random = fresh_random();
  const Stream stream;
  const Matrix first = make_matrix(random, 4), second = make_matrix(random, 3);
  static_assert(kN == kK);
  for (const int64_t m : {1, 8, 30, 64, 130, 600}) {
    const DeviceMemory source(x_bytes(m)), x(x_bytes(m)), middle(y_bytes(m)), y(y_bytes(m)), copy(y_bytes(m));
    const DeviceMemory nan(y_bytes(m));
    fill_uniform(source.data(), DType::kF16, m * kK, random());
    succeed(cudaDeviceSynchronize());
    std::vector<std::byte> expected;
    for (const bool dependent : {false, true}) {
      for (int i = 0; i < 10; ++i) {
        const Execution execution{.stream = stream.get(), .dependent_launch = dependent};
        // y of the last round is copied slowly while the first multiplies may already be starting.
        for (const DeviceMemory* memory : {&x, &middle}) {
          succeed(cudaMemcpyAsync(memory->data(), nan.data(), nan.bytes(), cudaMemcpyDeviceToDevice, stream.get()));
        }
        slow_copy(source.data(), x.data(), m * kK, stream.get());
        gemm(first, arguments(x, middle, m), execution);
        gemm(second, arguments(middle, y, m), execution);
        slow_copy(y.data(), copy.data(), m * kN, stream.get());
        gemm(first, arguments(x, y, m), execution);
        stream.wait();
        const std::vector<std::byte> got = copy.host();
        if (expected.empty()) expected = got;
        ASSERT_TRUE(got == expected) << m << " tokens, round " << i << (dependent ? ", dependent launch" : "");
      }
    }
  }
}

}  // namespace
}  // namespace flute
