#include <algorithm>
#include <cmath>
#include <limits>

#include "base/seed.hpp"
#include "cuda/device/device_test.hpp"
#include "cuda/layout.hpp"
#include "cuda/random_matrix.hpp"

namespace flute {
namespace {

class CudaMatrix : public OnDevice {};

std::vector<PackedView> place(const std::vector<DevicePacked>& segments, int which) {
  std::vector<PackedView> views;
  for (const DevicePacked& segment : segments) views.push_back(segment.view(which));
  return views;
}

void expect_comes_back(const Matrix& matrix, const std::vector<PackedMatrix>& segments, DType dtype,
                       const std::string& text) {
  ASSERT_EQ(matrix.segment_count(), static_cast<int>(segments.size())) << text;
  for (size_t i = 0; i < segments.size(); ++i) {
    const PackedMatrix back = matrix.to_packed(static_cast<int>(i));
    const PackedMatrix& given = segments[i];
    ASSERT_EQ(back.n, given.n) << text;
    ASSERT_EQ(back.k, given.k) << text;
    ASSERT_EQ(back.bits, given.bits) << text;
    ASSERT_EQ(back.group_size, given.group_size) << text;
    ASSERT_TRUE(back.codes == given.codes) << text << ": codes of segment " << i;
    ASSERT_EQ(back.codebook, given.codebook) << text;
    ASSERT_EQ(back.scale_dtype, dtype) << text;
    const size_t scales = given.scales.size() / dtype_size(given.scale_dtype);
    ASSERT_EQ(back.scales.size(), scales * 2) << text;
    for (size_t s = 0; s < scales; ++s) {
      ASSERT_EQ(load_as_f32(back.scales.data(), dtype, s),
                round_to(dtype, load_as_f32(given.scales.data(), given.scale_dtype, s)))
          << text << ": scale " << s << " of segment " << i;
    }
  }
}

// From any mixture of host and device memory, codes come back exactly.
TEST_F(CudaMatrix, PackedLayoutComesBack) {
  auto random = fresh_random();
  const std::vector<std::vector<int64_t>> rows = {{1},        {16},          {37},        {384},          {1152},
                                                  {32, 1000}, {64, 96, 128}, {32, 32, 5}, {32, 64, 32, 7}};
  for (const int bits : {2, 3, 4}) {
    for (const int64_t k : {32, 64, 96, 128, 384, 640, 1024, 1056, 4160}) {
      Draw draw;
      draw.bits = bits;
      draw.k = k;
      draw.rows = rows[random_between(random, 0, static_cast<int64_t>(rows.size()) - 1)];
      constexpr int64_t kGroups[] = {32, 64, 128, 256, -1};
      draw.group_size = kGroups[random_between(random, 0, 4)];
      draw.dtype = random_between(random, 0, 1) == 0 ? DType::kF16 : DType::kBF16;
      draw.scale_dtype = static_cast<DType>(random_between(random, 0, 2));
      const std::vector<PackedMatrix> segments = random_segments(random, draw);
      std::vector<DevicePacked> on_device;
      for (const PackedMatrix& segment : segments) on_device.emplace_back(segment);
      for (const int which : {0, 7, static_cast<int>(random_between(random, 1, 6))}) {
        const Matrix matrix = Matrix::from_packed(kCudaDevice, place(on_device, which), {.dtype = draw.dtype});
        EXPECT_EQ(matrix.n(), draw.n());
        EXPECT_EQ(matrix.k(), draw.k);
        EXPECT_EQ(matrix.device(), kCudaDevice);
        expect_comes_back(matrix, segments, draw.dtype, draw.text());
      }
    }
  }
}

// More than what is staged at a time: the pieces meet without a gap.
TEST_F(CudaMatrix, LargeMatricesGoInPieces) {
  auto random = fresh_random();
  for (const int bits : {2, 3, 4}) {
    Draw draw;
    draw.bits = bits;
    draw.k = 4096;
    draw.group_size = 128;
    draw.rows = {32, 65000 + random_between(random, 0, 5000)};
    const std::vector<PackedMatrix> segments = random_segments(random, draw);
    const Matrix matrix = Matrix::from_packed(kCudaDevice, views_of(segments));
    expect_comes_back(matrix, segments, draw.dtype, draw.text());
  }
}

TEST_F(CudaMatrix, BytesAreWhatTheFormatNeeds) {
  auto random = fresh_random();
  Draw draw;
  draw.rows = {4096};
  draw.k = 4096;
  const Matrix matrix = Matrix::from_packed(kCudaDevice, views_of(random_segments(random, draw)));
  const size_t needed = 4096 * 4096 / 2 + 4096 * 64 * 2 + 16 * 2;
  EXPECT_GE(matrix.bytes(), needed);
  EXPECT_LE(matrix.bytes(), needed + 1024 + 2 * cuda::kReadBeyond);  // parts are aligned
}

TEST_F(CudaMatrix, ValuesThatAreNotFiniteAreNamedWhereverTheyLie) {
  auto random = fresh_random();
  Draw draw;
  draw.rows = {32, 100};
  draw.k = 512;
  const std::vector<PackedMatrix> good = random_segments(random, draw);
  for (const int which : {0, 7}) {
    std::vector<PackedMatrix> bad = good;
    store_from_f32(bad[1].scales.data(), DType::kF16, 97 * 8 + 3, std::numeric_limits<float>::infinity());
    store_from_f32(bad[1].scales.data(), DType::kF16, 98 * 8 + 1, std::numeric_limits<float>::quiet_NaN());
    const auto refusal = [&] {
      std::vector<DevicePacked> on_device;
      for (const PackedMatrix& segment : bad) on_device.emplace_back(segment);
      return error_of(ErrorCode::kInvalidArgument,
                      [&] { (void)Matrix::from_packed(kCudaDevice, place(on_device, which)); });
    };
    EXPECT_EQ(refusal(), "matrix: segment 1: scale of row 97, group 3: expected a finite value, found inf");
    bad = good;
    bad[0].codebook[5] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(refusal(), "matrix: segment 0: codebook: row 0, code 5: expected a finite value, found nan");
  }
}

// A refused matrix must leave nothing behind that a program's own error check would stumble over.
TEST_F(CudaMatrix, RefusalsLeaveNoErrorBehind) {
  auto random = fresh_random();
  Draw draw;
  draw.bits = 5;
  (void)error_of(ErrorCode::kUnsupported,
                 [&] { (void)Matrix::from_packed(kCudaDevice, views_of(random_segments(random, draw))); });
  (void)error_of(ErrorCode::kUnsupported, [&] { workspace_init({Device::Kind::kCuda, 99}, nullptr, 0); });
  std::vector<std::byte> host(64);
  (void)error_of(ErrorCode::kInvalidArgument, [&] { workspace_init(kCudaDevice, host.data(), host.size()); });
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(CudaMatrix, WorkspaceIsZeroed) {
  const DeviceMemory workspace(4096);
  workspace_init(kCudaDevice, workspace.data(), workspace.bytes());
  succeed(cudaDeviceSynchronize());
  EXPECT_EQ(workspace.host(), std::vector<std::byte>(4096));
}

}  // namespace
}  // namespace flute
