// Matrices in the caller's own device memory: the same bits as the library's own.
#include <algorithm>
#include <memory>

#include "base/seed.hpp"
#include "cuda/device/device_test.hpp"
#include "cuda/device/work.hpp"
#include "cuda/layout.hpp"
#include "cuda/random_matrix.hpp"
#include "flute/tiled.hpp"

namespace flute {
namespace {

class CudaTiled : public OnDevice {};

/// A view and the memory behind it, which begins as NaN.
struct Tiled {
  explicit Tiled(const Draw& draw) {
    view.k = draw.k;
    view.bits = draw.bits;
    view.group_size = draw.group_size;
    view.dtype = draw.dtype;
    view.segment_count = static_cast<int>(draw.rows.size());
    std::copy(draw.rows.begin(), draw.rows.end(), view.segment_rows.begin());
    const TiledBytes bytes = tiled_bytes(view);
    codes = std::make_unique<DeviceMemory>(bytes.codes);
    scales = std::make_unique<DeviceMemory>(bytes.scales);
    codebooks = std::make_unique<DeviceMemory>(bytes.codebooks);
    view.codes = codes->data();
    view.scales = scales->data();
    view.codebooks = codebooks->data();
  }

  TiledView view;
  std::unique_ptr<DeviceMemory> codes, scales, codebooks;
};

TEST_F(CudaTiled, MultipliesAndDequantizesAsAMatrixOfTheLibrary) {
  auto random = fresh_random();
  const Stream stream;
  const std::vector<std::vector<int64_t>> rows = {{1}, {37}, {384}, {64, 96, 128}, {32, 64, 32, 7}};
  for (const int bits : {2, 3, 4}) {
    for (const int64_t k : {32, 96, 640, 1056}) {
      Draw draw;
      draw.bits = bits;
      draw.k = k;
      draw.rows = rows[static_cast<size_t>(random_between(random, 0, static_cast<int64_t>(rows.size()) - 1))];
      constexpr int64_t kGroups[] = {32, 64, 128, 256, -1};
      draw.group_size = kGroups[static_cast<size_t>(random_between(random, 0, 4))];
      draw.dtype = random_between(random, 0, 1) == 0 ? DType::kF16 : DType::kBF16;
      draw.scale_dtype = static_cast<DType>(random_between(random, 0, 2));
      SCOPED_TRACE(draw.text());
      const std::vector<PackedMatrix> segments = random_segments(random, draw);
      const Matrix matrix = Matrix::from_packed(kCudaDevice, views_of(segments), {.dtype = draw.dtype});
      const Tiled tiled(draw);
      // Codes in one call, the rest in another.
      TiledView codes = tiled.view, rest = tiled.view;
      codes.scales = codes.codebooks = nullptr;
      rest.codes = nullptr;
      tile(codes, views_of(segments), stream.get());
      tile(rest, views_of(segments), stream.get());

      for (const int64_t m : {1, 7, 40, 200}) {
        const DeviceMemory x(static_cast<size_t>(m * k) * 2), bias(static_cast<size_t>(draw.n()) * 2);
        const DeviceMemory y(static_cast<size_t>(m * draw.n()) * 2), expected(y.bytes());
        fill_uniform(x.data(), draw.dtype, m * k, random());
        fill_uniform(bias.data(), draw.dtype, draw.n(), random());
        succeed(cudaDeviceSynchronize());
        GemmArgs args;
        args.m = m;
        args.x = x.data();
        args.bias = bias.data();
        args.dtype = draw.dtype;
        args.y = expected.data();
        gemm(matrix, args, {.stream = stream.get()});
        args.y = y.data();
        gemm(tiled.view, args, {.stream = stream.get()});
        stream.wait();
        ASSERT_TRUE(y.host() == expected.host()) << m << " tokens";
      }

      const DeviceMemory weights(static_cast<size_t>(draw.n() * k) * 2);
      dequantize(tiled.view, weights.data(), stream.get());
      stream.wait();
      const std::vector<std::byte> found = weights.host();
      size_t at = 0;
      for (size_t i = 0; i < segments.size(); ++i) {
        const PackedMatrix& segment = segments[i];
        std::vector<std::byte> weight(static_cast<size_t>(segment.n * k) * 2);
        dequantize_rows(segment.view(), 0, segment.n, draw.dtype, weight.data());
        EXPECT_TRUE(std::equal(weight.begin(), weight.end(), found.begin() + static_cast<std::ptrdiff_t>(at)));
        at += weight.size();
        const DeviceMemory packed(segment.codes.size() * 4);
        untile(tiled.view, static_cast<int>(i), reinterpret_cast<uint32_t*>(packed.data()), stream.get());
        stream.wait();
        const std::vector<std::byte> back = packed.host();
        EXPECT_TRUE(std::equal(back.begin(), back.end(), reinterpret_cast<const std::byte*>(segment.codes.data())));
      }
    }
  }
}

TEST_F(CudaTiled, MemoryThatIsNotTheDevicesIsRefused) {
  auto random = fresh_random();
  const Draw draw;
  const std::vector<PackedMatrix> segments = random_segments(random, draw);
  Tiled tiled(draw);
  alignas(16) static std::byte host[1 << 16];
  tiled.view.codes = host;
  const std::string expected = "matrix: codes: expected memory of CUDA device 0, found host memory";
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { tile(tiled.view, views_of(segments)); }), expected);
  GemmArgs args;
  args.m = 1;
  args.dtype = DType::kF16;
  args.x = tiled.scales->data();
  args.y = tiled.scales->data();
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { gemm(tiled.view, args); }), expected);
  tiled.view.codes = tiled.codes->data();
  EXPECT_EQ(error_of(ErrorCode::kInvalidArgument, [&] { dequantize(tiled.view, host); }),
            "dequantize: out: expected memory of CUDA device 0, found host memory");
  tiled.view.device = 99;
  EXPECT_EQ(error_of(ErrorCode::kUnsupported, [&] { tile(tiled.view, views_of(segments)); }).substr(0, 14),
            "no CUDA device");
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

}  // namespace
}  // namespace flute
