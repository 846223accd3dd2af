// What is refused on every machine: these tests need no device and no CUDA in the build.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "base/seed.hpp"
#include "cuda/format.hpp"
#include "cuda/random_matrix.hpp"
#include "flute/error.hpp"

namespace flute {
namespace {

std::string unsupported(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
    return error.what();
  }
  return "nothing thrown";
}

std::string format_error(const std::vector<PackedMatrix>& segments, DType dtype = DType::kF16) {
  return unsupported([&] { (void)cuda::supported_format(views_of(segments), dtype); });
}

TEST(Refusals, FormatsWithoutKernelsAreNamed) {
  auto random = fresh_random();
  Draw draw;
  EXPECT_EQ(format_error(random_segments(random, draw), DType::kF32),
            "matrix: CUDA multiplies activations of fp16 or bf16, found fp32");
  for (const int bits : {1, 5, 6, 7, 8}) {
    draw.bits = bits;
    EXPECT_EQ(format_error(random_segments(random, draw)),
              "matrix: CUDA multiplies 2, 3 and 4 bits, found " + std::to_string(bits));
  }
  draw.bits = 3;
  draw.rows = {32, 32};
  std::vector<PackedMatrix> segments = random_segments(random, draw);
  segments[1].codebook.resize(32 * 8);
  EXPECT_EQ(format_error(segments), "matrix: segment 1: CUDA takes no codebook per row");
  segments = random_segments(random, draw);
  segments[0].offsets = segments[0].scales;
  EXPECT_EQ(format_error(segments), "matrix: segment 0: CUDA takes no offsets");
}

TEST(Refusals, EveryFormatWithKernelsIsTaken) {
  auto random = fresh_random();
  for (const int bits : {2, 3, 4}) {
    for (const int64_t group : {32, 64, 128, 256, -1}) {
      for (const DType dtype : {DType::kF16, DType::kBF16}) {
        Draw draw;
        draw.bits = bits;
        draw.group_size = group;
        const cuda::Format format = cuda::supported_format(views_of(random_segments(random, draw)), dtype);
        EXPECT_EQ(format.bits, bits);
        EXPECT_EQ(format.group_size, group);
        EXPECT_EQ(format.bf16, dtype == DType::kBF16);
      }
    }
  }
}

// A shape too large for 32-bit counts must not wrap around. Nothing is read: only sizes count.
TEST(Refusals, ShapesBeyond32Bits) {
  PackedView view;
  view.n = int64_t{1} << 31;
  view.k = 32;
  const std::vector<float> codebook(16);
  view.codebook = codebook;
  EXPECT_EQ(unsupported([&] {
              (void)cuda::supported_format({&view, 1}, DType::kF16);
            }),
            "matrix: CUDA takes N and K up to 1073741823, found 2147483648 x 32");
}

// A machine without a GPU, without a driver, or with a build without CUDA: one line that says which.
TEST(Refusals, ADeviceThatIsNotThere) {
  auto random = fresh_random();
  const std::vector<PackedMatrix> segments = random_segments(random, {});
  for (const int index : {4096, -1}) {
    const Device nowhere{Device::Kind::kCuda, index};
    const std::string expected = "CUDA";
    for (const std::string& message : {unsupported([&] { (void)Matrix::from_packed(nowhere, views_of(segments)); }),
                                       unsupported([&] { workspace_init(nowhere, nullptr, 0); })}) {
      EXPECT_TRUE(message == "this build has no CUDA backend" || message.starts_with("no CUDA device")) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    }
  }
}

}  // namespace
}  // namespace flute
