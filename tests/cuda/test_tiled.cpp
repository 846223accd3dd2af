// Matrices in the caller's own memory, as far as no device is needed: sizes, and what is refused.
#include <gtest/gtest.h>

#include "cuda/layout.hpp"
#include "error_of.hpp"
#include "flute/tiled.hpp"

namespace flute {
namespace {

TiledView view_of(std::vector<int64_t> rows, int64_t k, int bits, int64_t group_size) {
  TiledView view;
  view.k = k;
  view.bits = bits;
  view.group_size = group_size;
  view.segment_count = static_cast<int>(rows.size());
  for (size_t i = 0; i < std::min<size_t>(rows.size(), 4); ++i) view.segment_rows[i] = rows[i];
  return view;
}

TEST(TiledBytes, CoverTheLayoutAndWhatKernelsReadBeyond) {
  const TiledBytes whole = tiled_bytes(view_of({4096}, 4096, 4, 64));
  EXPECT_EQ(whole.codes, 4096u * 4096 / 2 + cuda::kReadBeyond);
  EXPECT_EQ(whole.scales, 4096u * 64 * 2 + cuda::kReadBeyond);
  EXPECT_EQ(whole.codebooks, 32u);
  // 33 rows are three groups of 16, and 96 k two units of 64; groups of 32 cover both units.
  const TiledBytes padded = tiled_bytes(view_of({32, 1}, 96, 3, 32));
  EXPECT_EQ(padded.codes, 48u * 128 * 3 / 8 + cuda::kReadBeyond);
  EXPECT_EQ(padded.scales, 48u * 4 * 2 + cuda::kReadBeyond);
  EXPECT_EQ(padded.codebooks, 2u * 8 * 2);
  EXPECT_EQ(tiled_bytes(view_of({48}, 128, 2, -1)).scales, 48u * 2 + cuda::kReadBeyond);
}

TEST(TiledBytes, RefuseWhatCannotBe) {
  const auto error = [](const TiledView& view) { return error_of([&] { (void)tiled_bytes(view); }); };
  EXPECT_EQ(error(view_of({64}, 64, 5, 64)), "matrix: CUDA multiplies 2, 3 and 4 bits, found 5");
  EXPECT_EQ(error(view_of({64}, 65, 4, 64)), "matrix: segment 0: expected K to be a positive multiple of 32, found 65");
  EXPECT_EQ(error(view_of({33, 32}, 64, 4, 64)),
            "matrix: segment 0: expected a multiple of 32 rows before another segment, found 33");
  EXPECT_EQ(error(view_of({}, 64, 4, 64)), "matrix: expected 1..4 segments, found 0");
  EXPECT_EQ(error(view_of({32, 32, 32, 32, 32}, 64, 4, 64)), "matrix: expected 1..4 segments, found 5");
  EXPECT_EQ(error(view_of({-1}, 64, 4, 64)), "matrix: segment 0: expected N >= 0, found -1");
  TiledView view = view_of({64}, 64, 4, 64);
  view.dtype = DType::kF32;
  EXPECT_EQ(error(view), "matrix: CUDA multiplies activations of fp16 or bf16, found fp32");
  view.dtype = DType::kF16;
  view.codes = reinterpret_cast<void*>(8);
  EXPECT_EQ(error(view), "matrix: expected codes at a multiple of 16 bytes, found 0x8");
}

TEST(Tiled, ArgumentsThatDoNotFitAreNamed) {
  alignas(16) static std::byte memory[16];
  TiledView view = view_of({64}, 64, 4, 64);
  view.codes = view.scales = view.codebooks = memory;
  const std::vector<uint32_t> codes(32 * 8);
  const std::vector<uint16_t> scales(32);
  const std::vector<float> codebook(16);
  PackedView packed;
  packed.n = 32;
  packed.k = 64;
  packed.codes = codes;
  packed.scales = scales.data();
  packed.codebook = codebook;
  EXPECT_EQ(error_of([&] {
              tile(view, {&packed, 1});
            }),
            "tile: segment 0: expected 64 x 64, 4 bits, group size 64, found 32 x 64, 4, 64");
  view.segment_rows[0] = 32;
  view.scales = nullptr;
  EXPECT_EQ(error_of([&] {
              tile(view, {&packed, 1});
            }),
            "tile: expected scales and codebooks, or neither, found codebooks alone");
  EXPECT_EQ(error_of([&] { gemm(view, {}); }), "matrix: expected scales, found null");
  EXPECT_EQ(error_of([&] { dequantize(view, memory); }), "matrix: expected scales, found null");
  EXPECT_EQ(error_of([&] { untile(view, 1, nullptr); }), "untile: expected a segment below 1, found 1");
  EXPECT_EQ(error_of([&] { untile(view, 0, nullptr); }), "untile: expected codes, found null for the target");
  view.scales = memory;
  EXPECT_EQ(error_of([&] { dequantize(view, memory + 2); }).substr(0, 47),
            "dequantize: expected out at a multiple of 16 by");
  const std::vector<PackedView> two = {packed, packed};
  EXPECT_EQ(error_of([&] { tile(view, two); }), "tile: expected 1 segments, found 2");
}

}  // namespace
}  // namespace flute
