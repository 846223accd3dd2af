#include <algorithm>

#include "base/seed.hpp"
#include "cuda/device/gemm_case.hpp"
#include "shapes.hpp"

namespace flute {
namespace {

class CudaGemm : public OnDevice {};

// Shapes that fit no tile, at every number of tokens that the benchmarks use.
TEST_F(CudaGemm, AwkwardShapesAgreeWithFloat64) {
  auto random = fresh_random();
  constexpr int64_t kGroups[] = {32, 64, 128, 256, -1};
  int count = 0;
  for (const auto& [n, k] : kAwkwardShapes) {
    for (const int bits : {2, 3, 4}) {
      for (const DType dtype : {DType::kF16, DType::kBF16}) {
        Draw draw;
        draw.rows = {n};
        draw.k = k;
        draw.bits = bits;
        draw.group_size = kGroups[count++ % 5];
        draw.dtype = draw.scale_dtype = dtype;
        const GemmCase one(random, draw, n > 10000 ? 257 : 4096);
        for (const int64_t m : kTokenCounts) {
          if (m <= one.m) one.expect(m);
        }
        if (HasFailure()) return;  // one shape's worth of messages is enough
      }
    }
  }
}

// What a caller may choose: segments, strides, bias, scales of another dtype.
TEST_F(CudaGemm, RandomDrawsAgreeWithFloat64AndStayInTheirBuffers) {
  auto random = fresh_random();
  constexpr int64_t kGroups[] = {32, 64, 128, 256, -1};
  for (int i = 0; i < 300; ++i) {
    Draw draw;
    draw.bits = static_cast<int>(random_between(random, 2, 4));
    draw.k = 32 * random_between(random, 1, random_between(random, 1, 130));
    draw.group_size = kGroups[random_between(random, 0, 4)];
    draw.dtype = random_between(random, 0, 1) == 0 ? DType::kF16 : DType::kBF16;
    draw.scale_dtype = static_cast<DType>(random_between(random, 0, 2));
    draw.rows.clear();
    const int64_t segments = random_between(random, 1, 4);
    for (int64_t s = 1; s < segments; ++s) draw.rows.push_back(32 * random_between(random, 1, 30));
    draw.rows.push_back(random_between(random, 1, 2000));
    const int64_t m = random_between(random, 1, random_between(random, 1, 150));
    const int64_t pad_x = 8 * random_between(random, 0, 1) * random_between(random, 1, 9);
    const GemmCase one(random, draw, m, {.pad_x = pad_x, .bias = random_between(random, 0, 1) == 0});
    one.expect(m, {.pad_y = random_between(random, 0, 1) * random_between(random, 1, 40),
                   .dependent_launch = random_between(random, 0, 1) == 0});
    if (HasFailure()) return;
  }
}

// Every number of tokens that one launch takes: a plan for each.
TEST_F(CudaGemm, EveryNumberOfTokens) {
  auto random = fresh_random();
  for (const int bits : {2, 3, 4}) {
    Draw draw;
    draw.rows = {1024, 256, 200};
    draw.k = 1024;
    draw.bits = bits;
    draw.group_size = bits == 3 ? 32 : 128;
    const GemmCase one(random, draw, 70, {.bias = true});
    for (int64_t m = 1; m <= one.m; ++m) one.expect(m, {.pad_y = 3});
    if (HasFailure()) return;
  }
}

// Row i of the product with the identity is column i of the dequantized matrix, bit for bit: layout, tables, scales.
TEST_F(CudaGemm, IdentityActivationsReturnTheDequantizedMatrix) {
  auto random = fresh_random();
  for (const int bits : {2, 3, 4}) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      for (const int64_t group : {32, 64, 128, 256, -1}) {
        Draw draw;
        draw.rows = {32, 64, 96, 200};
        draw.k = 32 * random_between(random, 1, 24);
        draw.bits = bits;
        draw.group_size = group;
        draw.dtype = dtype;
        const std::vector<PackedMatrix> segments = random_segments(random, draw);
        const Matrix matrix = Matrix::from_packed(kCudaDevice, views_of(segments), {.dtype = dtype});
        const int64_t n = draw.n(), k = draw.k;
        const std::vector<std::byte> dense = dense_weights(segments, dtype);
        std::vector<std::byte> identity(static_cast<size_t>(k * k) * 2);
        for (int64_t i = 0; i < k; ++i) store_from_f32(identity.data(), dtype, static_cast<size_t>(i * k + i), 1.0f);
        const DeviceMemory x(identity.data(), identity.size());
        for (const int64_t step : {int64_t{1}, int64_t{8}, int64_t{13}, int64_t{16}, int64_t{32}, int64_t{33},
                                   int64_t{64}, int64_t{200}, k}) {
          if (step == 1 && k > 256) continue;
          const DeviceMemory y(static_cast<size_t>(k * n) * 2);
          for (int64_t begin = 0; begin < k; begin += step) {
            GemmArgs args;
            args.m = std::min(step, k - begin);
            args.x = x.data() + begin * k * 2;
            args.y = y.data() + begin * n * 2;
            args.dtype = dtype;
            gemm(matrix, args);
          }
          const std::vector<std::byte> got = y.host();
          for (int64_t i = 0; i < k; ++i) {
            for (int64_t r = 0; r < n; ++r) {
              ASSERT_EQ(load_as_f32(got.data(), dtype, static_cast<size_t>(i * n + r)),
                        load_as_f32(dense.data(), dtype, static_cast<size_t>(r * k + i)))
                  << draw.text() << ", tokens at once " << step << ", row " << r << ", k " << i;
            }
          }
        }
      }
    }
  }
}

TEST_F(CudaGemm, NamesTheArgumentThatCannotBe) {
  auto random = fresh_random();
  Draw draw;
  draw.rows = {40};
  draw.k = 64;
  const Matrix matrix = Matrix::from_packed(kCudaDevice, views_of(random_segments(random, draw)));
  const DeviceMemory x(3 * 64 * 2 + 64), y(3 * 40 * 2), bias(40 * 2);
  std::vector<std::byte> host(4096);
  GemmArgs good;
  good.m = 3;
  good.x = x.data();
  good.y = y.data();
  good.dtype = DType::kF16;
  const auto message = [&](const GemmArgs& args) {
    return error_of(ErrorCode::kInvalidArgument, [&] { gemm(matrix, args); });
  };
  GemmArgs bad = good;
  bad.dtype = DType::kBF16;
  EXPECT_EQ(message(bad), "gemm: expected dtype fp16, which the matrix was made for, found bf16");
  bad.dtype = DType::kF32;
  EXPECT_EQ(message(bad), "gemm: expected dtype fp16, which the matrix was made for, found fp32");
  bad = good;
  bad.m = -1;
  EXPECT_EQ(message(bad), "gemm: expected m >= 0, found -1");
  bad = good;
  bad.ldx = 56;
  EXPECT_EQ(message(bad), "gemm: expected ldx >= k = 64, found 56");
  bad.ldx = 68;
  EXPECT_EQ(message(bad), "gemm: expected ldx to be a multiple of 8, found 68");
  bad = good;
  bad.ldy = 39;
  EXPECT_EQ(message(bad), "gemm: expected ldy >= n = 40, found 39");
  bad = good;
  bad.x = nullptr;
  EXPECT_EQ(message(bad), "gemm: expected x and y, found null for x");
  bad = good;
  bad.x = x.data() + 8;
  EXPECT_TRUE(message(bad).starts_with("gemm: expected x at a multiple of 16 bytes, found 0x")) << message(bad);
  alignas(16) static std::byte aligned[64 * 2 * 3];
  bad = good;
  bad.x = aligned;
  EXPECT_EQ(message(bad), "gemm: x: expected memory of CUDA device 0, found host memory");
  bad = good;
  bad.y = host.data();
  EXPECT_EQ(message(bad), "gemm: y: expected memory of CUDA device 0, found host memory");
  bad = good;
  bad.bias = host.data();
  EXPECT_EQ(message(bad), "gemm: bias: expected memory of CUDA device 0, found host memory");
  succeed(cudaDeviceSynchronize());
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(y.host(), std::vector<std::byte>(3 * 40 * 2, std::byte{0xff})) << "a refused call wrote to y";
}

TEST_F(CudaGemm, NoTokensAndNoRowsAreNoOps) {
  auto random = fresh_random();
  Draw draw;
  const Matrix matrix = Matrix::from_packed(kCudaDevice, views_of(random_segments(random, draw)));
  GemmArgs args;
  args.dtype = DType::kF16;
  gemm(matrix, args);
  draw.rows = {0};
  const Matrix empty = Matrix::from_packed(kCudaDevice, views_of(random_segments(random, draw)));
  EXPECT_EQ(empty.to_packed(0).codes.size(), 0u);
  args.m = 3;
  gemm(empty, args);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

}  // namespace
}  // namespace flute
