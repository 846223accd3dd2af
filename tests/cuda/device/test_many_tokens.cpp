// Many tokens, through the public multiply: on Hopper these are kernels of their own, with activations by tensor copies
// and K shared out between blocks.
#include <cstring>

#include "base/seed.hpp"
#include "cuda/device/gemm_case.hpp"

namespace flute {
namespace {

class CudaManyTokens : public OnDevice {};

constexpr int64_t kGroups[] = {32, 64, 128, 256, -1};
constexpr int64_t kMost = 300;

Draw random_format(std::mt19937_64& random) {
  Draw draw;
  draw.bits = static_cast<int>(random_between(random, 2, 4));
  draw.group_size = kGroups[random_between(random, 0, 4)];
  draw.dtype = random_between(random, 0, 1) == 0 ? DType::kF16 : DType::kBF16;
  draw.scale_dtype = static_cast<DType>(random_between(random, 0, 2));
  return draw;
}

// A tile's last token, its first, and all that a plan for another number would get wrong. Segments end inside a tile.
TEST_F(CudaManyTokens, EveryNumberOfTokens) {
  auto random = fresh_random();
  for (const int bits : {2, 3, 4}) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      Draw draw;
      draw.rows = {1024, 32, 200};
      draw.k = 1056;  // a unit of 64 is left half empty
      draw.bits = bits;
      draw.group_size = dtype == DType::kF16 ? 32 : 128;
      draw.dtype = dtype;
      const GemmCase one(random, draw, kMost, {.bias = dtype == DType::kBF16});
      for (int64_t m = 17; m <= kMost; ++m) one.expect(m, {.pad_y = m % 4});
      if (HasFailure()) return;
    }
  }
}

// Every format, with tokens for many tiles: each block has several, of several tables.
TEST_F(CudaManyTokens, EveryFormatAgreesWithFloat64) {
  auto random = fresh_random();
  for (const int bits : {2, 3, 4}) {
    for (const int64_t group : kGroups) {
      for (const DType dtype : {DType::kF16, DType::kBF16}) {
        Draw draw;
        draw.rows = {320, 64, 32, 500 + random_between(random, 0, 31)};
        draw.k = 32 * random_between(random, 8, 40);
        draw.bits = bits;
        draw.group_size = group;
        draw.dtype = draw.scale_dtype = dtype;
        const GemmCase one(random, draw, 4096, {.pad_x = 8 * random_between(random, 0, 3)});
        for (const int64_t m : {512, 1000, 4096}) one.expect(m, {.pad_y = random_between(random, 0, 9)});
        if (HasFailure()) return;
      }
    }
  }
}

// More tiles than a card holds blocks: some are a block's own, and what remains is shared out between the blocks of
// clusters. Both find their table, their rows and their barriers as the last tile left them.
TEST_F(CudaManyTokens, MoreTilesThanTheCardHolds) {
  auto random = fresh_random();
  for (const int64_t n : {17000, 20000, 27000}) {
    Draw draw = random_format(random);
    draw.rows = {8192, 96, n - 8288};
    draw.k = 32 * random_between(random, 20, 40);
    const GemmCase one(random, draw, 520);
    for (const int64_t m : {70, 256, 520}) one.expect(m);
    if (HasFailure()) return;
  }
}

// Many rounds of each stage, a last tile of a single token, whole tiles and shared ones: activations land long before
// weights, so warps that take stages by turns run ahead of each other as far as they ever do.
TEST_F(CudaManyTokens, LongSums) {
  auto random = fresh_random();
  Draw draw;
  draw.rows = {8192};
  draw.k = 8192;
  const GemmCase one(random, draw, 513);
  for (int time = 0; time < 4; ++time) {
    for (const int64_t m : {129, 513}) one.expect(m);
  }
}

// One block's share of K may be a single unit, a block's rows a single row, a matrix smaller than a tile or much wider
// than it is long.
TEST_F(CudaManyTokens, ShapesAtTheEdge) {
  auto random = fresh_random();
  for (const int64_t k : {32, 64, 96, 128, 192, 256, 8192}) {
    for (const int64_t n : {1, 7, 16, 17, 64, 129, 257, 4097}) {
      Draw draw = random_format(random);
      draw.rows = {n};
      draw.k = k;
      const GemmCase one(random, draw, k > 4096 && n > 4096 ? 130 : 600);
      for (const int64_t m : {33, 65, 130, 257, 600}) {
        if (m <= one.m) one.expect(m);
      }
      if (HasFailure()) return;
    }
  }
}

// Rows of x and y wherever a caller may have them: x at any multiple of 16 bytes and ldx any multiple of 8, y at any
// element. A view into a larger tensor looks like that.
TEST_F(CudaManyTokens, ActivationsAndOutputsMayLieAnywhere) {
  auto random = fresh_random();
  for (int64_t offset_x = 0; offset_x < 64; offset_x += 8) {
    for (const int64_t pad_x : {0, 8, 24, 56, 4096}) {
      Draw draw = random_format(random);
      draw.rows = {96, random_between(random, 1, 400)};
      draw.k = 32 * random_between(random, 1, 20);
      const GemmCase one(random, draw, 200, {.pad_x = pad_x, .offset_x = offset_x});
      for (const int64_t m : {64, 131, 200}) {
        one.expect(m, {.pad_y = random_between(random, 0, 17), .offset_y = random_between(random, 0, 9)});
      }
      if (HasFailure()) return;
    }
  }
}

// What a tensor copy cannot take is refused in the words of the call, and nothing is written.
TEST_F(CudaManyTokens, ActivationsThatCannotBeReadAreRefused) {
  auto random = fresh_random();
  Draw draw;
  draw.rows = {40};
  const Matrix matrix = Matrix::from_packed(kCudaDevice, views_of(random_segments(random, draw)));
  for (const int64_t m : {33, 100, 1000}) {
    const DeviceMemory x(static_cast<size_t>(m * 80) * 2), y(static_cast<size_t>(m * draw.n()) * 2);
    GemmArgs args;
    args.m = m;
    args.x = x.data();
    args.y = y.data();
    args.dtype = DType::kF16;
    const auto message = [&] { return error_of(ErrorCode::kInvalidArgument, [&] { gemm(matrix, args); }); };
    for (const int bytes : {2, 4, 8, 12}) {
      args.x = x.data() + bytes;
      EXPECT_TRUE(message().starts_with("gemm: expected x at a multiple of 16 bytes, found 0x")) << message();
    }
    args.x = x.data();
    for (const int64_t ldx : {65, 66, 68, 76}) {
      args.ldx = ldx;
      EXPECT_EQ(message(), "gemm: expected ldx to be a multiple of 8, found " + std::to_string(ldx));
    }
    succeed(cudaDeviceSynchronize());
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_EQ(y.host(), std::vector<std::byte>(y.bytes(), std::byte{0xff})) << "a refused call wrote to y";
  }
}

// In a batch of several users' tokens one that overflowed must not reach the others, nor change a bit of them.
TEST_F(CudaManyTokens, ATokenOfNanStaysAlone) {
  auto random = fresh_random();
  for (int i = 0; i < 12; ++i) {
    Draw draw = random_format(random);
    draw.rows = {128, random_between(random, 100, 600)};
    draw.k = 32 * random_between(random, 1, 60);
    const int64_t m = random_between(random, 33, 400), n = draw.n(), bad = random_between(random, 0, m - 1);
    const GemmCase one(random, draw, m);
    const std::vector<std::byte> good = one.run(m).host();
    succeed(cudaMemset(one.x_at(bad), 0xff, static_cast<size_t>(draw.k) * 2));
    const std::vector<std::byte> got = one.run(m).host();
    const auto row = [&](const std::vector<std::byte>& y, int64_t token) {
      return y.data() + (GemmCase::kGuard + token * n) * 2;
    };
    for (int64_t token = 0; token < m; ++token) {
      if (token != bad) {
        ASSERT_EQ(std::memcmp(row(got, token), row(good, token), static_cast<size_t>(n) * 2), 0)
            << draw.text() << ", m " << m << ": token " << token << " changed with token " << bad;
        continue;
      }
      for (int64_t r = 0; r < n; ++r) {
        const float value = load_as_f32(row(got, token), draw.dtype, static_cast<size_t>(r));
        ASSERT_NE(value, value) << draw.text() << ", m " << m << ": row " << r << " of the token of NaN";
      }
    }
  }
}

// Row i of the product with the identity is column i of the dequantized matrix, bit for bit, also where K is shared out
// and where a block goes from tile to tile and from table to table.
TEST_F(CudaManyTokens, IdentityActivationsReturnTheDequantizedMatrix) {
  auto random = fresh_random();
  for (const int bits : {2, 3, 4}) {
    for (const int64_t group : kGroups) {
      for (const DType dtype : {DType::kF16, DType::kBF16}) {
        Draw draw;
        draw.rows = {640, 32, 352, 1000};
        draw.k = 32 * random_between(random, 2, 36);
        draw.bits = bits;
        draw.group_size = group;
        draw.dtype = draw.scale_dtype = dtype;
        const std::vector<PackedMatrix> segments = random_segments(random, draw);
        const Matrix matrix = Matrix::from_packed(kCudaDevice, views_of(segments), {.dtype = dtype});
        const std::vector<std::byte> dense = dense_weights(segments, dtype);
        const int64_t m = random_between(random, 33, 1200), n = draw.n(), k = draw.k;
        std::vector<std::byte> x(static_cast<size_t>(m * k) * 2);
        for (int64_t i = 0; i < m; ++i) store_from_f32(x.data(), dtype, static_cast<size_t>(i * k + i % k), 1.0f);
        const DeviceMemory on_device(x.data(), x.size()), y(static_cast<size_t>(m * n) * 2);
        GemmArgs args;
        args.m = m;
        args.x = on_device.data();
        args.y = y.data();
        args.dtype = dtype;
        gemm(matrix, args);
        const std::vector<std::byte> got = y.host();
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t r = 0; r < n; ++r) {
            ASSERT_EQ(load_as_f32(got.data(), dtype, static_cast<size_t>(i * n + r)),
                      load_as_f32(dense.data(), dtype, static_cast<size_t>(r * k + i % k)))
                << draw.text() << ", m " << m << ", token " << i << ", row " << r;
          }
        }
      }
    }
  }
}

// A call of more tokens than a launch counts goes in several.
TEST_F(CudaManyTokens, MoreTokensThanALaunchTakes) {
  auto random = fresh_random();
  for (const int64_t rest : {5, 100}) {
    Draw draw;
    draw.rows = {3};
    draw.k = 32;
    draw.group_size = 32;
    const std::vector<PackedMatrix> segments = random_segments(random, draw);
    const Matrix matrix = Matrix::from_packed(kCudaDevice, views_of(segments));
    const std::vector<std::byte> dense = dense_weights(segments, draw.dtype);
    const int64_t m = (int64_t{1} << 20) + rest, n = draw.n(), k = draw.k;
    std::vector<std::byte> x(static_cast<size_t>(m * k) * 2);
    for (int64_t i = 0; i < m; ++i) store_from_f32(x.data(), draw.dtype, static_cast<size_t>(i * k + i % k), 1.0f);
    const DeviceMemory on_device(x.data(), x.size()), y(static_cast<size_t>(m * n) * 2);
    GemmArgs args;
    args.m = m;
    args.x = on_device.data();
    args.y = y.data();
    args.dtype = draw.dtype;
    gemm(matrix, args);
    const std::vector<std::byte> got = y.host();
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t r = 0; r < n; ++r) {
        ASSERT_EQ(load_as_f32(got.data(), draw.dtype, static_cast<size_t>(i * n + r)),
                  load_as_f32(dense.data(), draw.dtype, static_cast<size_t>(r * k + i % k)))
            << "m " << m << ", token " << i << ", row " << r;
      }
    }
  }
}

}  // namespace
}  // namespace flute
