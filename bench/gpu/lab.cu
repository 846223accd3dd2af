// The decode lab: checks the kernels against float64, then times them beside the floor and cuBLAS.
//   lab check <draws> <seed>           random shapes, formats, plans; stops with exit code 1 at the first wrong answer
//   lab time <cases> > results.json    one case a line, key=value pairs (see README.md)
//   lab once <case>                    one launch after a warm-up, for a profiler
//   lab mma                            rate of the tensor-core instruction
//   lab plan <case>                    the plan, in words; needs no GPU
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/decode/decode.hpp"
#include "cuda/measure/cublas.hpp"
#include "cuda/measure/graph.hpp"
#include "cuda/measure/kernels.hpp"
#include "readers.cuh"

namespace flute::cuda {
namespace {

#define CHECK(call)                                                                        \
  do {                                                                                     \
    const cudaError_t error_ = (call);                                                     \
    if (error_ != cudaSuccess) {                                                           \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error_)); \
      std::exit(2);                                                                        \
    }                                                                                      \
  } while (0)

__host__ __device__ inline uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

__host__ __device__ inline float uniform(uint64_t x) { return static_cast<float>(mix(x) >> 40) * 0x1p-24f; }

template <typename T>
__global__ void fill_uniform(T* out, size_t count, float low, float high, uint64_t seed) {
  for (size_t i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull) {
    out[i] = T(low + (high - low) * uniform(seed * 0x10001 + i));
  }
}

__global__ void fill_bits(uint64_t* out, size_t count, uint64_t seed) {
  for (size_t i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull)
    out[i] = mix(seed * 0x10001 + i);
}

__global__ void fill_codes(uint8_t* out, size_t count, int bits, uint64_t seed) {
  for (size_t i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull) {
    out[i] = static_cast<uint8_t>(mix(seed * 0x10001 + i) >> (64 - bits));
  }
}

struct Segments {
  int count, row[kMaxSegments + 1];
};

// codes [n][k], one a byte -> tiled.
__global__ void tile_codes(const uint8_t* codes, uint32_t* tiled, int n, int k, int bits, int row_groups, int units) {
  const int words = bits;
  const size_t total = static_cast<size_t>(row_groups) * units * 32 * words;
  for (size_t i = blockIdx.x * 256ull + threadIdx.x; i < total; i += gridDim.x * 256ull) {
    const int word = static_cast<int>(i % words), lane = static_cast<int>(i / words % 32);
    const size_t unit = i / words / 32;
    const int row_0 = static_cast<int>(unit / units) * kGroupRows, k_0 = static_cast<int>(unit % units) * kUnitK;
    tiled[unit * 32 * words + word_position(bits, lane, word)] =
        tiled_word(bits, lane, word, [&](int row, int col) -> uint32_t {
          if (row_0 + row >= n || k_0 + col >= k) return 0;
          return codes[static_cast<size_t>(row_0 + row) * k + k_0 + col];
        });
  }
}

// scales [n][groups] -> tiled.
template <typename T>
__global__ void tile_scales(const T* scales, T* tiled, int n, int groups, int tiled_groups, int row_groups) {
  const size_t total = static_cast<size_t>(row_groups) * tiled_groups * kGroupRows;
  for (size_t i = blockIdx.x * 256ull + threadIdx.x; i < total; i += gridDim.x * 256ull) {
    const int row = static_cast<int>(i % kGroupRows), group = static_cast<int>(i / kGroupRows % tiled_groups);
    const int at = static_cast<int>(i / kGroupRows / tiled_groups) * kGroupRows + row;
    tiled[i - row + scale_position(row)] =
        at < n && group < groups ? scales[static_cast<size_t>(at) * groups + group] : T(0.f);
  }
}

// y in float64, one warp per output, from the untiled codes: shares nothing with the kernel under test but its inputs.
template <typename T>
__global__ void reference(const uint8_t* codes, const T* scales, const T* codebooks, const T* x, double* y,
                          Segments segments, int m, int n, int k, int bits, int group, int groups) {
  const int row = blockIdx.x, token = blockIdx.y, lane = threadIdx.x;
  int s = 0;
  while (s + 1 < segments.count && segments.row[s + 1] <= row) ++s;
  double sum = 0;
  for (int i = lane; i < k; i += 32) {
    const float value = static_cast<float>(codebooks[(s << bits) + codes[static_cast<size_t>(row) * k + i]]);
    const float scale = static_cast<float>(scales[static_cast<size_t>(row) * groups + (group < 0 ? 0 : i / group)]);
    sum += static_cast<double>(static_cast<float>(T(value * scale))) *
           static_cast<double>(static_cast<float>(x[static_cast<size_t>(token) * k + i]));
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(~0u, sum, offset);
  if (lane == 0) y[static_cast<size_t>(token) * n + row] = sum;
}

struct Case {
  Shape shape;
  Format format;
  PlanWish wish;
  int segments = 1;
  bool dependent = true;
  std::string label;

  int groups() const { return format.group_size < 0 ? 1 : (shape.k + format.group_size - 1) / format.group_size; }
};

Segments make_segments(int n, int count) {
  Segments s = {};
  s.count = count;
  for (int i = 0; i <= count; ++i)
    s.row[i] = i == count ? n : static_cast<int>(static_cast<long long>(n) * i / count) / 32 * 32;
  return s;
}

DeviceLimits device_limits;

DecodeArguments make_arguments(const Case& c) {
  const Segments segments = make_segments(c.shape.n, c.segments);
  DecodeArguments a = {};
  a.m = c.shape.m, a.n = c.shape.n, a.k = c.shape.k;
  a.ldx = a.k, a.ldy = a.n;
  a.segments = segments.count;
  std::copy(segments.row, segments.row + kMaxSegments + 1, a.segment_row);
  a.dependent_launch = c.dependent;
  a.plan = make_decode_plan(c.shape, c.format, device_limits, c.wish);
  return a;
}

cudaError_t launch(const DecodeArguments& a, const Case& c, cudaStream_t stream) {
  const DecodeKernel kernel = find_decode_kernel(a.plan, c.format);
  if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
  static std::map<DecodeKernel, bool> prepared;
  if (!prepared[kernel]) {
    const cudaError_t error = prepare_decode_kernel(kernel, device_limits);
    if (error != cudaSuccess) return error;
    prepared[kernel] = true;
  }
  return launch_decode(kernel, a, stream);
}

template <typename T>
struct Buffer {
  T* data = nullptr;
  size_t count = 0;
  explicit Buffer(size_t n) : count(n) { CHECK(cudaMalloc(&data, std::max<size_t>(n, 1) * sizeof(T))); }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
};

// One case against float64. Returns an empty string, or what is wrong.
template <typename T>
std::string check_case(const Case& c, uint64_t seed, bool identity, double* error_out) {
  const Shape& d = c.shape;
  const int bits = c.format.bits, groups = c.groups();
  const Segments segments = make_segments(d.n, c.segments);
  DecodeArguments a = make_arguments(c);
  if (!a.plan.valid) return "no plan";
  const int row_groups = a.plan.row_groups, units = a.plan.units;
  constexpr size_t kGuard = 4096;
  Buffer<uint8_t> codes(static_cast<size_t>(d.n) * d.k);
  Buffer<uint32_t> tiled(static_cast<size_t>(row_groups) * units * unit_bytes(bits) / 4);
  Buffer<T> scales(static_cast<size_t>(d.n) * groups),
      tiled_scales(static_cast<size_t>(row_groups) * a.plan.groups * kGroupRows);
  Buffer<T> codebooks(static_cast<size_t>(c.segments) << bits);
  Buffer<T> x(static_cast<size_t>(d.m) * d.k + kGuard), y(static_cast<size_t>(d.m) * d.n + 2 * kGuard);
  Buffer<double> expected(static_cast<size_t>(d.m) * d.n);
  fill_codes<<<512, 256>>>(codes.data, codes.count, bits, seed + 1);
  fill_uniform<<<512, 256>>>(scales.data, scales.count, 0.02f, 1.3f, seed + 2);
  fill_uniform<<<1, 256>>>(codebooks.data, codebooks.count, -1.f, 1.f, seed + 3);
  CHECK(cudaMemset(x.data, 0xff, x.count * sizeof(T)));  // NaN beyond the activations
  if (identity) {
    std::vector<T> host(static_cast<size_t>(d.m) * d.k, T(0.f));
    for (int i = 0; i < d.m; ++i) host[static_cast<size_t>(i) * d.k + (mix(seed) + 37ull * i) % d.k] = T(1.f);
    CHECK(cudaMemcpy(x.data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  } else {
    fill_uniform<<<512, 256>>>(x.data, static_cast<size_t>(d.m) * d.k, -1.f, 1.f, seed + 4);
  }
  tile_codes<<<1024, 256>>>(codes.data, tiled.data, d.n, d.k, bits, row_groups, units);
  tile_scales<<<1024, 256>>>(scales.data, tiled_scales.data, d.n, groups, a.plan.groups, row_groups);
  CHECK(cudaMemset(y.data, 0xff, y.count * sizeof(T)));
  reference<<<dim3(d.n, d.m), 32>>>(codes.data, scales.data, codebooks.data, x.data, expected.data, segments, d.m, d.n,
                                    d.k, bits, c.format.group_size, groups);
  CHECK(cudaDeviceSynchronize());
  a.codes = reinterpret_cast<const uint8_t*>(tiled.data);
  a.scales = reinterpret_cast<const uint8_t*>(tiled_scales.data), a.codebooks = codebooks.data;
  a.x = reinterpret_cast<const uint8_t*>(x.data), a.y = y.data + kGuard;
  std::vector<T> first;
  double worst = 0;
  for (int repeat = 0; repeat < 3; ++repeat) {
    CHECK(launch(a, c, nullptr));
    CHECK(cudaDeviceSynchronize());
    std::vector<T> got(y.count);
    std::vector<double> want(expected.count);
    CHECK(cudaMemcpy(got.data(), y.data, y.count * sizeof(T), cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(want.data(), expected.data, expected.count * sizeof(double), cudaMemcpyDeviceToHost));
    const auto* raw = reinterpret_cast<const uint16_t*>(got.data());
    for (size_t i = 0; i < kGuard; ++i) {
      if (raw[i] != 0xffff || raw[y.count - 1 - i] != 0xffff) return "wrote outside the output";
    }
    double difference = 0, norm = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double value = static_cast<double>(static_cast<float>(got[kGuard + i]));
      if (!(std::abs(value) < 1e30)) return "output " + std::to_string(i) + " is not finite";
      if (identity && value != want[i]) return "identity differs at " + std::to_string(i);
      difference += (value - want[i]) * (value - want[i]);
      norm += want[i] * want[i];
    }
    worst = std::max(worst, std::sqrt(difference / norm));
    if (repeat == 0) {
      first = got;
    } else if (std::memcmp(first.data(), got.data(), got.size() * sizeof(T)) != 0) {
      return "two runs differ";
    }
    CHECK(cudaMemset(y.data, 0xff, y.count * sizeof(T)));
  }
  *error_out = worst;
  // Up to 16 tokens the scale multiplies sums, not rounded weights: of few outputs, one that cancels shows the
  // difference.
  const double promise = (!c.format.bf16 ? 5e-4 : 4e-3) * (expected.count < 64 ? 4 : 1);
  if (!(worst <= promise)) return "relative error " + std::to_string(worst);
  return "";
}

std::string describe(const Case& c) {
  char text[400];
  std::snprintf(text, sizeof(text), "%s bits=%d group=%d m=%d n=%d k=%d segments=%d [%s]",
                c.format.bf16 ? "bf16" : "fp16", c.format.bits, c.format.group_size, c.shape.m, c.shape.n, c.shape.k,
                c.segments, to_string(make_arguments(c).plan).c_str());
  return text;
}

int run_check(int draws, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto pick = [&](std::vector<int> list) { return list[random() % list.size()]; };
  double worst_half = 0, worst_bfloat = 0;
  int done = 0, planless = 0;
  for (int i = 0; i < draws; ++i) {
    Case c;
    c.format.bits = pick({2, 3, 4});
    c.format.group_size = pick({32, 64, 128, 256, -1});
    c.format.bf16 = random() % 3 == 0;
    c.shape.m = pick({1, 2, 3, 4, 7, 8, 9, 13, 16, 17, 25, 32, 33, 48, 53, 64});
    const bool large = i % 16 == 0;
    c.shape.n = large ? pick({4096, 6144, 10240, 14336}) : 1 + static_cast<int>(random() % 2000);
    c.shape.k = large ? pick({3584, 4096, 8192, 14336}) : 32 * (1 + static_cast<int>(random() % 100));
    c.segments = c.shape.n >= 4 * 32 ? 1 + static_cast<int>(random() % 4) : 1;
    c.dependent = random() % 2 != 0;
    if (random() % 4 == 0) c.wish.rows = pick({1, 2, 3, 4, 6});
    if (random() % 4 == 0) c.wish.warps = pick({1, 4, 7, 8, 16});
    if (random() % 4 == 0) c.wish.blocks = pick({1, 2, 7});
    if (random() % 4 == 0) c.wish.depth = 1;
    if (!make_arguments(c).plan.valid) c.wish = {};
    if (!make_arguments(c).plan.valid) {
      ++planless;
      continue;
    }
    double error = 0;
    const bool identity = i % 3 == 0;
    const std::string wrong = !c.format.bf16 ? check_case<__half>(c, random(), identity, &error)
                                             : check_case<__nv_bfloat16>(c, random(), identity, &error);
    if (!wrong.empty()) {
      std::printf("WRONG %s: %s\n", wrong.c_str(), describe(c).c_str());
      return 1;
    }
    double& worst = !c.format.bf16 ? worst_half : worst_bfloat;
    if (!identity) worst = std::max(worst, error);
    ++done;
  }
  std::printf("{\"checked\": %d, \"without_plan\": %d, \"seed\": %llu, \"worst_fp16\": %.3g, \"worst_bf16\": %.3g}\n",
              done, planless, static_cast<unsigned long long>(seed), worst_half, worst_bfloat);
  return 0;
}

// --- Times ---

constexpr size_t kRotate = 210u << 20;  // more than four times 50 MB of L2
constexpr size_t kPool = 1100u << 20, kDensePool = 2000u << 20;

double microseconds(double seconds) { return 1e6 * seconds; }

class Stream {
 public:
  Stream() { CHECK(cudaStreamCreate(&stream_)); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Lab {
 public:
  Lab()
      : pool_(kPool),
        dense_(kDensePool / 2),
        scales_(64 << 20),
        x_(4 << 20),
        y_(16 << 20),
        sink_(1),
        cublas_(stream_.get()) {
    fill_bits<<<2048, 256>>>(reinterpret_cast<uint64_t*>(pool_.data), kPool / 8, 11);
    fill_uniform<<<2048, 256>>>(dense_.data, dense_.count, -0.1f, 0.1f, 12);
    fill_uniform<<<2048, 256>>>(scales_.data, scales_.count, 0.002f, 0.02f, 13);
    fill_uniform<<<2048, 256>>>(x_.data, x_.count, -1.f, 1.f, 14);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaFuncSetAttribute(read_bulk, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
    CHECK(cudaFuncSetAttribute(flute::cuda::read_mixed, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
    CHECK(cudaFuncSetAttribute(read_async<4>, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
    CHECK(cudaFuncSetAttribute(read_async<8>, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
    CHECK(cudaFuncSetAttribute(read_async<16>, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
    if (!cublas_.found()) std::fprintf(stderr, "libcublas not found: no cuBLAS times\n");
  }

  static size_t code_bytes(const DecodeArguments& a, int bits) {
    return static_cast<size_t>(a.plan.row_groups) * a.plan.units * unit_bytes(bits);
  }
  static size_t scale_bytes(const DecodeArguments& a) {
    return static_cast<size_t>(a.plan.row_groups) * a.plan.groups * kScaleBytes;
  }
  static int launches(double bytes) { return std::max(static_cast<int>(kRotate / bytes) + 1, bytes > 4e7 ? 20 : 40); }

  // The best of a few plain kernels over the same bytes.
  Times floor(size_t bytes) {
    const size_t key = bytes;
    if (floors_.count(key)) return floors_[key];
    const size_t stride = (bytes + 4095) / 4096 * 4096, buffers = std::min(kPool / stride, kRotate / stride + 2);
    Times best;
    for (int variant = 0; variant < kReadVariants; ++variant) {
      const Times timing = time_graph(stream_.get(), launches(static_cast<double>(bytes)), [&](int i) {
        CHECK(read_once(pool_.data + (i % buffers) * stride, bytes, variant, device_limits.sm_count, sink_.data,
                        stream_.get()));
      });
      if (best.median == 0 || timing.median < best.median) best = timing;
    }
    return floors_[key] = best;
  }

  Times read(const std::string& mode, int per_sm, int bytes_each, int stages, size_t bytes) {
    const size_t stride = (bytes + 4095) / 4096 * 4096, buffers = std::min(kPool / stride, kRotate / stride + 2);
    return time_graph(stream_.get(), launches(static_cast<double>(bytes)), [&](int i) {
      const uint8_t* data = pool_.data + (i % buffers) * stride;
      const auto* vectors = reinterpret_cast<const uint4*>(data);
      const int grid = 132 * per_sm;
      if (mode == "plain") {
        if (stages == 2) read_plain<2><<<grid, 256, 0, stream_.get()>>>(vectors, bytes / 16, sink_.data);
        if (stages == 4) read_plain<4><<<grid, 256, 0, stream_.get()>>>(vectors, bytes / 16, sink_.data);
        if (stages == 8) read_plain<8><<<grid, 256, 0, stream_.get()>>>(vectors, bytes / 16, sink_.data);
      } else if (mode == "async") {
        if (stages == 4) read_async<4><<<grid, 256, 4 * 4096, stream_.get()>>>(vectors, bytes / 16, sink_.data);
        if (stages == 8) read_async<8><<<grid, 256, 8 * 4096, stream_.get()>>>(vectors, bytes / 16, sink_.data);
        if (stages == 16) read_async<16><<<grid, 256, 16 * 4096, stream_.get()>>>(vectors, bytes / 16, sink_.data);
      } else {
        read_bulk<<<grid, 256, 2048 + 8 * stages * bytes_each, stream_.get()>>>(data, bytes / bytes_each, bytes_each,
                                                                                stages, sink_.data);
      }
      CHECK(cudaGetLastError());
    });
  }

  // 48 steps in each block; activations of 512 KB. Returns the time and how many blocks ran.
  Times read_mixed(int own, int common, int cluster, int* blocks) {
    constexpr int kSteps = 48, kCommonTotal = 512 * 1024;
    const int stages = std::min(8, 220 * 1024 / (own + common));
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    cudaLaunchConfig_t config = {};
    *blocks = 132 / cluster * cluster;
    config.gridDim = *blocks, config.blockDim = 32, config.dynamicSmemBytes = 1024 + stages * (own + common);
    config.stream = stream_.get(), config.attrs = &attribute, config.numAttrs = 1;
    return time_graph(stream_.get(), 20, [&](int) {
      CHECK(cudaLaunchKernelEx(&config, flute::cuda::read_mixed, static_cast<const uint8_t*>(pool_.data),
                               reinterpret_cast<const uint8_t*>(x_.data), own, common, kCommonTotal, kSteps, stages,
                               cluster));
    });
  }

  Times dense(int m, int n, int k) {
    if (!cublas_.found()) return {};
    const std::string key = std::to_string(m) + "," + std::to_string(n) + "," + std::to_string(k);
    if (dense_times_.count(key)) return dense_times_[key];
    const size_t stride = static_cast<size_t>(n) * k,
                 buffers = std::min(dense_.count / stride, kRotate / 2 / stride + 2);
    const auto launch = [&](int i) {
      cublas_.multiply(dense_.data + (i % buffers) * stride, x_.data, y_.data, m, n, k, DType::kF16);
    };
    launch(0);
    CHECK(cudaStreamSynchronize(stream_.get()));
    return dense_times_[key] = time_graph(stream_.get(), launches(stride * 2.0), launch);
  }

  DecodeArguments arguments(const Case& c) {
    DecodeArguments a = make_arguments(c);
    a.codes = pool_.data, a.scales = reinterpret_cast<const uint8_t*>(scales_.data), a.codebooks = dense_.data;
    a.x = reinterpret_cast<const uint8_t*>(x_.data), a.y = y_.data;
    return a;
  }

  Times ours(const Case& c) {
    const DecodeArguments a = arguments(c);
    if (!a.plan.valid) return {};
    const size_t code_stride = (code_bytes(a, c.format.bits) + 4095) / 4096 * 4096;
    const size_t scale_stride = (scale_bytes(a) + 4095) / 4096 * 4096;
    const size_t buffers = std::min({kPool / code_stride, scales_.count * 2 / scale_stride, kRotate / code_stride + 2});
    CHECK(launch(a, c, stream_.get()));
    return time_graph(stream_.get(), launches(static_cast<double>(code_stride)), [&](int i) {
      DecodeArguments b = a;
      b.codes += (i % buffers) * code_stride;
      b.scales += (i % buffers) * scale_stride;
      CHECK(launch(b, c, stream_.get()));
    });
  }

  void once(const Case& c) {
    DecodeArguments a = arguments(c);
    for (int i = 0; i < 3; ++i) {
      CHECK(launch(a, c, stream_.get()));
      a.codes += (code_bytes(a, c.format.bits) + 4095) / 4096 * 4096;
      CHECK(cudaStreamSynchronize(stream_.get()));
    }
  }

 private:
  Stream stream_;
  Buffer<uint8_t> pool_;
  Buffer<__half> dense_, scales_, x_, y_;
  Buffer<uint32_t> sink_;
  Cublas cublas_;
  std::map<size_t, Times> floors_;
  std::map<std::string, Times> dense_times_;
};

std::map<std::string, std::string> parse(const std::string& line) {
  std::map<std::string, std::string> keys;
  std::istringstream in(line);
  for (std::string word; in >> word;) {
    const size_t at = word.find('=');
    if (at != std::string::npos) keys[word.substr(0, at)] = word.substr(at + 1);
  }
  return keys;
}

Case to_case(std::map<std::string, std::string> keys) {
  const auto number = [&](const char* key, int otherwise) {
    return keys.count(key) ? std::atoi(keys[key].c_str()) : otherwise;
  };
  Case c;
  c.shape = {number("m", 1), number("n", 4096), number("k", 4096)};
  c.format = {number("bits", 4), number("group", 128), keys["dtype"] == "bf16"};
  c.wish = {number("rows", 0), number("warps", 0), number("blocks", 0), number("depth", 0)};
  c.segments = number("segments", 1);
  c.dependent = number("dependent", 1) != 0;
  c.label = keys["set"];
  return c;
}

int run_mma() {
  Buffer<long long> clocks(1);
  Buffer<float> sink(1);
  bool first = true;
  std::printf("[\n");
  for (const int warps : {4, 8, 16}) {
    for (const int chains : {1, 2, 4, 8}) {
      constexpr int kCount = 1024;
      for (int repeat = 0; repeat < 2; ++repeat) {
        if (chains == 1) mma_rate<1><<<132, 32 * warps>>>(kCount, clocks.data, sink.data);
        if (chains == 2) mma_rate<2><<<132, 32 * warps>>>(kCount, clocks.data, sink.data);
        if (chains == 4) mma_rate<4><<<132, 32 * warps>>>(kCount, clocks.data, sink.data);
        if (chains == 8) mma_rate<8><<<132, 32 * warps>>>(kCount, clocks.data, sink.data);
        CHECK(cudaDeviceSynchronize());
      }
      long long host = 0;
      CHECK(cudaMemcpy(&host, clocks.data, sizeof(host), cudaMemcpyDeviceToHost));
      std::printf("%s{\"set\": \"mma\", \"warps\": %d, \"chains\": %d, \"clocks_per_mma_and_sm\": %.3f}",
                  first ? "" : ",\n", warps, chains, static_cast<double>(host) / kCount / chains / warps);
      first = false;
    }
  }
  std::printf("\n]\n");
  return 0;
}

int run_time(const char* file) {
  Lab lab;
  std::ifstream in(file);
  bool first = true;
  std::printf("[\n");
  for (std::string line; std::getline(in, line);) {
    auto keys = parse(line);
    if (keys.empty()) continue;
    if (!first) std::printf(",\n");
    first = false;
    if (keys.count("mixed")) {
      const int own = std::atoi(keys["own"].c_str()), common = std::atoi(keys["common"].c_str());
      const int cluster = std::atoi(keys["mixed"].c_str());
      int blocks = 0;
      const Times t = lab.read_mixed(own, common, cluster, &blocks);
      std::printf(
          "{\"set\": \"mixed\", \"cluster\": %d, \"own\": %d, \"common\": %d, \"blocks\": %d, \"us\": %.3f, "
          "\"own_gb_s\": %.0f, \"all_gb_s\": %.0f}",
          cluster, own, common, blocks, microseconds(t.median), 48e-3 * blocks * own / microseconds(t.median),
          48e-3 * blocks * (own + common) / microseconds(t.median));
      continue;
    }
    if (keys.count("read")) {
      const size_t bytes = std::strtoull(keys["bytes"].c_str(), nullptr, 10);
      const Times t = lab.read(keys["read"], std::atoi(keys["per_sm"].c_str()), std::atoi(keys["piece"].c_str()),
                               std::atoi(keys["stages"].c_str()), bytes);
      std::printf(
          "{\"set\": \"read\", \"mode\": \"%s\", \"per_sm\": %s, \"piece\": %d, \"stages\": %s, \"bytes\": %zu, "
          "\"us\": %.3f, \"floor_us\": %.3f}",
          keys["read"].c_str(), keys["per_sm"].c_str(), std::atoi(keys["piece"].c_str()), keys["stages"].c_str(), bytes,
          microseconds(t.median), microseconds(lab.floor(bytes).median));
      continue;
    }
    const Case c = to_case(keys);
    const DecodeArguments a = lab.arguments(c);
    if (!a.plan.valid) {
      std::printf("{\"set\": \"no plan\"}");
      continue;
    }
    const size_t bytes = (Lab::code_bytes(a, c.format.bits) + Lab::scale_bytes(a) + (2u << c.format.bits)) / 16 * 16;
    const Times t = lab.ours(c), floor = lab.floor(bytes), dense = lab.dense(c.shape.m, c.shape.n, c.shape.k);
    std::printf(
        "{\"set\": \"%s\", \"dtype\": \"%s\", \"bits\": %d, \"group\": %d, \"m\": %d, \"n\": %d, \"k\": %d, "
        "\"dependent\": %d, \"segments\": %d, \"warps\": %d, \"rows\": %d, \"blocks\": %d, \"depth\": %d, "
        "\"us\": %.3f, \"low_us\": %.3f, \"high_us\": %.3f, \"floor_us\": %.3f, \"cublas_us\": %.3f, \"bytes\": %zu}",
        c.label.c_str(), c.format.bf16 ? "bf16" : "fp16", c.format.bits, c.format.group_size, c.shape.m, c.shape.n,
        c.shape.k, c.dependent, c.segments, a.plan.warps, a.plan.rows, a.plan.blocks, a.plan.depth,
        microseconds(t.median), microseconds(t.low), microseconds(t.high), microseconds(floor.median),
        microseconds(dense.median), bytes);
    std::fflush(stdout);
  }
  std::printf("\n]\n");
  return 0;
}

}  // namespace
}  // namespace flute::cuda

int main(int argc, char** argv) {
  using namespace flute::cuda;
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "plan" && argc > 2) {  // needs no GPU
    std::string line;
    for (int i = 2; i < argc; ++i) line += std::string(argv[i]) + " ";
    std::printf("%s\n", describe(to_case(parse(line))).c_str());
    return 0;
  }
  CHECK(cudaDeviceGetAttribute(&device_limits.sm_count, cudaDevAttrMultiProcessorCount, 0));
  CHECK(cudaDeviceGetAttribute(&device_limits.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  if (mode == "check" && argc == 4) return run_check(std::atoi(argv[2]), std::strtoull(argv[3], nullptr, 10));
  if (mode == "mma") return run_mma();
  if (mode == "time" && argc == 3) return run_time(argv[2]);
  if (mode == "once" && argc > 2) {
    std::string line;
    for (int i = 2; i < argc; ++i) line += std::string(argv[i]) + " ";
    Lab lab;
    lab.once(to_case(parse(line)));
    return 0;
  }
  std::fprintf(
      stderr,
      "usage: lab check <draws> <seed> | lab time <cases> | lab once <key=value>... | lab plan <key=value>...\n");
  return 2;
}
