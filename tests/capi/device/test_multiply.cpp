// The multiply on a device as a program sees it that knows only the C ABI, and has a CUDA runtime of its own.
#include <cmath>
#include <cstring>

#include "base/seed.hpp"
#include "capi/capi_test.hpp"
#include "cuda/device/device_test.hpp"
#include "random_packed.hpp"

namespace {

using flute::DeviceMemory;
using flute::DType;
using flute::Stream;

constexpr flute_device kCuda = {FLUTE_CUDA, 0};
constexpr int64_t kGuard = 64;  // elements before and behind y

flute_packed_view view_of(const flute::PackedMatrix& matrix) {
  flute_packed_view view = {};
  view.size = sizeof(view);
  view.n = matrix.n;
  view.k = matrix.k;
  view.group_size = matrix.group_size;
  view.bits = matrix.bits;
  view.scale_dtype = static_cast<flute_dtype>(matrix.scale_dtype);
  view.codes = matrix.codes.data();
  view.scales = matrix.scales.data();
  view.codebook = matrix.codebook.data();
  view.codebook_rows = 1;
  return view;
}

/// Two layers stacked, activations with NaN between their rows, and the product in float64.
struct Multiply {
  Multiply(std::mt19937_64& random, int bits, DType activations) : dtype(activations) {
    flute::PackedDraw draw;
    draw.rows = {96, 41};
    draw.k = kK;
    draw.bits = bits;
    draw.scale_dtype = dtype;
    segments = flute::random_segments(random, draw);
    const auto given = flute::random_values(random, dtype, kM * kLdx, -1, 1);
    const auto bias_values = flute::random_values(random, dtype, kN, -4, 4);
    x = std::make_unique<DeviceMemory>(static_cast<size_t>(kM * kLdx) * 2);
    for (int64_t token = 0; token < kM; ++token) {
      flute::succeed(
          cudaMemcpy(x->data() + token * kLdx * 2, given.data() + token * kLdx * 2, kK * 2, cudaMemcpyHostToDevice));
    }
    bias = std::make_unique<DeviceMemory>(bias_values.data(), bias_values.size());
    int64_t first = 0;
    for (const flute::PackedMatrix& segment : segments) {
      std::vector<float> weights(static_cast<size_t>(segment.n * kK));
      const flute_packed_view view = view_of(segment);
      std::vector<uint16_t> rounded(weights.size());
      EXPECT_EQ(flute_dequantize(&view, 0, segment.n, static_cast<flute_dtype>(dtype), rounded.data()), FLUTE_OK)
          << message();
      for (int64_t token = 0; token < kM; ++token) {
        for (int64_t row = 0; row < segment.n; ++row) {
          double sum = flute::load_as_f32(bias_values.data(), dtype, static_cast<size_t>(first + row));
          for (int64_t i = 0; i < kK; ++i) {
            sum += double{flute::load_as_f32(given.data(), dtype, static_cast<size_t>(token * kLdx + i))} *
                   flute::load_as_f32(rounded.data(), dtype, static_cast<size_t>(row * kK + i));
          }
          expected[token * kN + first + row] = sum;
        }
      }
      first += segment.n;
    }
  }

  Owned<flute_matrix> matrix() const {
    std::vector<flute_packed_view> views;
    for (const flute::PackedMatrix& segment : segments) views.push_back(view_of(segment));
    const flute_packed_view* pointers[] = {&views[0], &views[1]};
    flute_matrix* made = nullptr;
    EXPECT_EQ(flute_matrix_create(kCuda, static_cast<flute_dtype>(dtype), pointers, 2, nullptr, &made), FLUTE_OK)
        << message();
    return Owned<flute_matrix>(made);
  }

  flute_gemm_args arguments(const DeviceMemory& y) const {
    flute_gemm_args args = {};
    args.size = sizeof(args);
    args.m = kM;
    args.x = x->data();
    args.ldx = kLdx;
    args.y = y.data() + kGuard * 2;
    args.ldy = kLdy;
    args.bias = bias->data();
    args.dtype = static_cast<flute_dtype>(dtype);
    return args;
  }

  static constexpr int64_t kM = 5, kN = 96 + 41, kK = 320, kLdx = kK + 8, kLdy = kN + 3;
  static constexpr size_t kYBytes = static_cast<size_t>(2 * kGuard + kM * kLdy) * 2;

  DType dtype;
  std::vector<flute::PackedMatrix> segments;
  std::unique_ptr<DeviceMemory> x, bias;
  std::vector<double> expected = std::vector<double>(kM * kN);
};

class CapiDevice : public flute::OnDevice {};

TEST_F(CapiDevice, MultipliesOnTheCallersStream) {
  auto random = flute::fresh_random();
  const Stream stream;
  for (const int bits : {2, 3, 4}) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      const Multiply test(random, bits, dtype);
      const auto matrix = test.matrix();
      flute_matrix_info info = {};
      info.size = sizeof(info);
      ASSERT_EQ(flute_matrix_get_info(matrix.get(), &info), FLUTE_OK) << message();
      EXPECT_EQ(info.n, Multiply::kN);
      EXPECT_EQ(info.segment_count, 2);
      EXPECT_EQ(info.device.kind, FLUTE_CUDA);
      EXPECT_GE(info.bytes, static_cast<size_t>(Multiply::kN * Multiply::kK * bits / 8));

      size_t bytes = 0;
      ASSERT_EQ(flute_gemm_workspace_bytes(matrix.get(), Multiply::kM, static_cast<flute_dtype>(dtype), &bytes),
                FLUTE_OK)
          << message();
      const DeviceMemory workspace(bytes);
      ASSERT_EQ(flute_workspace_init(kCuda, workspace.data(), bytes, stream.get()), FLUTE_OK) << message();
      std::vector<std::byte> first;
      for (const int32_t flags :
           {0, int32_t{FLUTE_NO_DEPENDENT_LAUNCH}, FLUTE_NO_DEPENDENT_LAUNCH | FLUTE_POINTERS_KNOWN}) {
        const DeviceMemory y(Multiply::kYBytes);
        flute_gemm_args args = test.arguments(y);
        args.flags = flags;
        args.stream = stream.get();
        args.workspace = workspace.data();
        args.workspace_bytes = bytes;
        ASSERT_EQ(flute_gemm(matrix.get(), &args), FLUTE_OK) << message();
        stream.wait();
        const std::vector<std::byte> got = y.host();
        double difference = 0, norm = 0;
        for (int64_t i = 0; i < static_cast<int64_t>(got.size()) / 2; ++i) {
          const int64_t token = (i - kGuard) / Multiply::kLdy, row = (i - kGuard) % Multiply::kLdy;
          if (i < kGuard || token >= Multiply::kM || row >= Multiply::kN) {
            ASSERT_EQ(std::memcmp(&got[static_cast<size_t>(2 * i)], "\xff\xff", 2), 0) << "wrote beside y, at " << i;
            continue;
          }
          const double expected = test.expected[token * Multiply::kN + row];
          const double error = flute::load_as_f32(got.data(), dtype, static_cast<size_t>(i)) - expected;
          difference += error * error;
          norm += expected * expected;
        }
        // The promise for 16-bit results; a NaN fails it, too.
        EXPECT_LE(std::sqrt(difference / norm), dtype == DType::kF16 ? 5e-4 : 4e-3) << bits << " bits";
        if (first.empty()) first = got;
        EXPECT_TRUE(got == first) << "dependent launch changed a bit";
      }
    }
  }
}

TEST_F(CapiDevice, MatricesOfDeviceMemoryComeBack) {
  auto random = flute::fresh_random();
  const Multiply test(random, 3, DType::kF16);
  std::vector<flute::DevicePacked> on_device;
  for (const flute::PackedMatrix& segment : test.segments) on_device.emplace_back(segment);
  std::vector<flute_packed_view> views;
  for (size_t i = 0; i < 2; ++i) {
    views.push_back(view_of(test.segments[i]));
    const flute::PackedView there = on_device[i].view(7);
    views[i].codes = there.codes.data();
    views[i].scales = there.scales;
    views[i].codebook = there.codebook.data();
  }
  const flute_packed_view* pointers[] = {&views[0], &views[1]};
  flute_matrix* made = nullptr;
  ASSERT_EQ(flute_matrix_create(kCuda, FLUTE_F16, pointers, 2, nullptr, &made), FLUTE_OK) << message();
  const Owned<flute_matrix> matrix(made);
  for (int32_t i = 0; i < 2; ++i) {
    flute_packed* packed = nullptr;
    ASSERT_EQ(flute_matrix_to_packed(matrix.get(), i, &packed), FLUTE_OK) << message();
    const Owned<flute_packed> owned(packed);
    flute_packed_view back = {};
    back.size = sizeof(back);
    ASSERT_EQ(flute_packed_get_view(packed, &back), FLUTE_OK) << message();
    const flute::PackedMatrix& given = test.segments[i];
    ASSERT_EQ(back.n, given.n);
    EXPECT_EQ(std::memcmp(back.codes, given.codes.data(), given.codes.size() * 4), 0);
    EXPECT_EQ(std::memcmp(back.scales, given.scales.data(), given.scales.size()), 0);
    EXPECT_EQ(std::memcmp(back.codebook, given.codebook.data(), given.codebook.size() * 4), 0);
  }
}

// Whatever can be refused is, by a status and a message, before anything is launched.
TEST_F(CapiDevice, CallsThatCannotBeAreRefusedBeforeALaunch) {
  auto random = flute::fresh_random();
  const Multiply test(random, 4, DType::kF16);
  const auto matrix = test.matrix();
  const DeviceMemory y(Multiply::kYBytes);
  alignas(16) static std::byte host[4096];
  const auto expect_refused = [&](const char* part, const auto& spoil) {
    flute_gemm_args args = test.arguments(y);
    spoil(args);
    EXPECT_ERROR(flute_gemm(matrix.get(), &args), FLUTE_INVALID_ARGUMENT, part);
  };
  using Args = flute_gemm_args;
  expect_refused("x: expected memory of CUDA device 0, found host memory", [&](Args& args) { args.x = host; });
  expect_refused("y: expected memory of CUDA device 0, found host memory", [&](Args& args) { args.y = host; });
  expect_refused("bias: expected memory of CUDA device 0, found host memory", [&](Args& args) { args.bias = host; });
  expect_refused("null for x", [&](Args& args) { args.x = nullptr; });
  expect_refused("null for y", [&](Args& args) { args.y = nullptr; });
  expect_refused("x at a multiple of 16 bytes", [&](Args& args) { args.x = test.x->data() + 2; });
  expect_refused("y and bias aligned", [&](Args& args) { args.y = y.data() + 1; });
  expect_refused("ldx >= k = 320, found 312", [&](Args& args) { args.ldx = 312; });
  expect_refused("ldx to be a multiple of 8, found 324", [&](Args& args) { args.ldx = 324; });
  expect_refused("ldy >= n = 137, found 136", [&](Args& args) { args.ldy = 136; });
  expect_refused("m >= 0, found -1", [&](Args& args) { args.m = -1; });
  expect_refused("expected dtype fp16", [&](Args& args) { args.dtype = FLUTE_BF16; });
  for (const int64_t m : {1, 5, 32, 64, 300}) {
    size_t bytes = 0;
    ASSERT_EQ(flute_gemm_workspace_bytes(matrix.get(), m, FLUTE_F16, &bytes), FLUTE_OK) << message();
    if (bytes == 0) continue;
    const DeviceMemory workspace(bytes);
    expect_refused("workspace", [&](Args& args) {
      args.m = m;
      args.workspace = workspace.data();
      args.workspace_bytes = bytes - 1;
    });
  }
  flute_gemm_args args = test.arguments(y);
  args.flags = 4;
  EXPECT_ERROR(flute_gemm(matrix.get(), &args), FLUTE_UNSUPPORTED, "flags");
  flute::succeed(cudaDeviceSynchronize());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(y.host(), std::vector<std::byte>(Multiply::kYBytes, std::byte{0xff})) << "a refused call wrote to y";
}

TEST_F(CapiDevice, FormatsAndPointersThatCannotBeAreRefused) {
  auto random = flute::fresh_random();
  flute::PackedDraw draw;
  flute_matrix* matrix = nullptr;
  const auto create = [&](const flute_packed_view& view, flute_dtype dtype, flute_device device) {
    const flute_packed_view* pointer = &view;
    return flute_matrix_create(device, dtype, &pointer, 1, nullptr, &matrix);
  };
  const flute::PackedMatrix good = flute::random_ordinary(random, draw, 64);
  EXPECT_ERROR(create(view_of(good), FLUTE_F32, kCuda), FLUTE_UNSUPPORTED, "fp16 or bf16, found fp32");
  EXPECT_ERROR(create(view_of(good), FLUTE_F16, {FLUTE_CUDA, 99}), FLUTE_UNSUPPORTED, "no CUDA device 99");
  draw.bits = 5;
  const flute::PackedMatrix five = flute::random_ordinary(random, draw, 64);
  EXPECT_ERROR(create(view_of(five), FLUTE_F16, kCuda), FLUTE_UNSUPPORTED, "2, 3 and 4 bits, found 5");
  draw.bits = 4;
  draw.per_row = true;
  const flute::PackedMatrix per_row = flute::random_ordinary(random, draw, 64);
  flute_packed_view view = view_of(per_row);
  view.codebook_rows = 64;
  EXPECT_ERROR(create(view, FLUTE_F16, kCuda), FLUTE_UNSUPPORTED, "no codebook per row");
  view = view_of(good);
  view.offsets = view.scales;
  EXPECT_ERROR(create(view, FLUTE_F16, kCuda), FLUTE_UNSUPPORTED, "no offsets");
  std::byte host[64];
  EXPECT_ERROR(flute_workspace_init(kCuda, host, sizeof(host), nullptr), FLUTE_INVALID_ARGUMENT,
               "workspace: expected memory of CUDA device 0, found host memory");
  EXPECT_EQ(matrix, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

}  // namespace
