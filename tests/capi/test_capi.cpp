#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/seed.hpp"
#include "capi/c_caller.h"
#include "capi/capi_test.hpp"
#include "flute/flute.h"
#include "flute/flute.hpp"

namespace {

using ::testing::Test;

constexpr flute_device kCpu = {FLUTE_CPU, 0};

std::vector<float> normal_values(size_t count) {
  auto random = flute::fresh_random();
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// Arguments for a 3-bit matrix of 64 x 96 in groups of 32; the test changes what it is about.
struct QuantizeCase {
  std::vector<float> weight = normal_values(64 * 96);
  std::vector<float> codebook = flute::nf_codebook(3).values;
  flute_quantize_args args = {};

  QuantizeCase() {
    args.size = sizeof(args);
    args.weight = weight.data();
    args.n = 64;
    args.k = 96;
    args.group_size = 32;
    args.dtype = FLUTE_F32;
    args.scale_dtype = FLUTE_F16;
    args.codebook = codebook.data();
    args.bits = 3;
  }
  Owned<flute_packed> quantize() const {
    flute_packed* packed = nullptr;
    EXPECT_EQ(flute_quantize_rtn(&args, &packed), FLUTE_OK) << message();
    return Owned<flute_packed>(packed);
  }
};

flute_packed_view view_of(const Owned<flute_packed>& packed) {
  flute_packed_view view = {};
  view.size = sizeof(view);
  EXPECT_EQ(flute_packed_get_view(packed.get(), &view), FLUTE_OK) << message();
  return view;
}

TEST(Capi, VersionIsTheHeaders) {
  EXPECT_EQ(flute_abi_version(), FLUTE_ABI_VERSION);
  int parts = 0;
  int numbers[3];
  parts = std::sscanf(flute_version(), "%d.%d.%d", &numbers[0], &numbers[1], &numbers[2]);
  EXPECT_EQ(parts, 3) << flute_version();
}

TEST(Capi, NumbersOfEnumerationsAreTheCppOnes) {
  EXPECT_EQ(FLUTE_INVALID_ARGUMENT, static_cast<int>(flute::ErrorCode::kInvalidArgument));
  EXPECT_EQ(FLUTE_INVALID_FORMAT, static_cast<int>(flute::ErrorCode::kInvalidFormat));
  EXPECT_EQ(FLUTE_IO, static_cast<int>(flute::ErrorCode::kIo));
  EXPECT_EQ(FLUTE_UNSUPPORTED, static_cast<int>(flute::ErrorCode::kUnsupported));
  EXPECT_EQ(FLUTE_INTERNAL, static_cast<int>(flute::ErrorCode::kInternal));
  EXPECT_EQ(FLUTE_OUT_OF_MEMORY, static_cast<int>(flute::ErrorCode::kOutOfMemory));
  EXPECT_EQ(FLUTE_DEVICE, static_cast<int>(flute::ErrorCode::kDevice));
  EXPECT_EQ(FLUTE_F32, static_cast<int>(flute::DType::kF32));
  EXPECT_EQ(FLUTE_F16, static_cast<int>(flute::DType::kF16));
  EXPECT_EQ(FLUTE_BF16, static_cast<int>(flute::DType::kBF16));
  EXPECT_EQ(FLUTE_CUDA, static_cast<int>(flute::Device::Kind::kCuda));
}

TEST(Capi, CProgramMultipliesWithWhatItQuantized) {
  constexpr int64_t kN = 96, kK = 320, kM = 5;
  const auto weight = normal_values(kN * kK);
  const auto x = normal_values(kM * kK);
  std::vector<float> dequantized(kN * kK), y(kM * kN);
  ASSERT_EQ(c_caller_multiply(weight.data(), kN, kK, x.data(), kM, dequantized.data(), y.data()), FLUTE_OK)
      << message();
  for (int64_t m = 0; m < kM; ++m) {
    for (int64_t n = 0; n < kN; ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < kK; ++k) {
        const double product = double{x[m * kK + k]} * double{dequantized[n * kK + k]};
        sum += product;
        magnitude += std::abs(product);
      }
      // Any order of fp32 additions: at most K roundings, each of at most half a unit of the sum of magnitudes.
      EXPECT_NEAR(y[m * kN + n], sum, magnitude * kK * std::numeric_limits<float>::epsilon());
    }
  }
}

TEST(Capi, QuantizesToTheBytesOfTheCppApi) {
  QuantizeCase test;
  const auto packed = test.quantize();
  const flute_packed_view view = view_of(packed);
  flute::RtnOptions options;
  options.group_size = 32;
  const auto expected =
      flute::quantize_rtn(test.weight.data(), flute::DType::kF32, 64, 96, flute::nf_codebook(3), options);
  ASSERT_EQ(view.n, 64);
  ASSERT_EQ(view.k, 96);
  ASSERT_EQ(view.bits, 3);
  ASSERT_EQ(view.group_size, 32);
  ASSERT_EQ(view.codebook_rows, 1);
  EXPECT_EQ(view.offsets, nullptr);
  EXPECT_EQ(std::vector<uint32_t>(view.codes, view.codes + expected.codes.size()), expected.codes);
  EXPECT_EQ(std::memcmp(view.scales, expected.scales.data(), expected.scales.size()), 0);
}

TEST(Capi, LearnsTheTableOfTheCppApi) {
  QuantizeCase test;
  flute_packed* made = nullptr;
  ASSERT_EQ(flute_quantize_mse(&test.args, &made), FLUTE_OK) << message();
  const Owned<flute_packed> packed(made);
  const flute_packed_view view = view_of(packed);
  flute::RtnOptions options;
  options.group_size = 32;
  const auto expected =
      flute::quantize_mse(test.weight.data(), flute::DType::kF32, 64, 96, flute::nf_codebook(3), options);
  EXPECT_EQ(std::vector<float>(view.codebook, view.codebook + 8), expected.codebook);
  EXPECT_NE(expected.codebook, test.codebook);
  EXPECT_EQ(std::vector<uint32_t>(view.codes, view.codes + expected.codes.size()), expected.codes);
  EXPECT_EQ(std::memcmp(view.scales, expected.scales.data(), expected.scales.size()), 0);
  test.args.clip = 0.5F;
  made = nullptr;
  EXPECT_ERROR(flute_quantize_mse(&test.args, &made), FLUTE_INVALID_ARGUMENT, "clip");
  EXPECT_EQ(made, nullptr);
}

TEST(Capi, CodesSurvivePackingAtEveryWidth) {
  for (int32_t bits = 1; bits <= 8; ++bits) {
    std::vector<uint8_t> codes(96), back(96);
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>((i * 7 + 3) % (size_t{1} << bits));
    std::vector<uint32_t> words(3 * static_cast<size_t>(bits));
    ASSERT_EQ(flute_pack_codes(codes.data(), 96, bits, words.data()), FLUTE_OK) << message();
    ASSERT_EQ(flute_unpack_codes(words.data(), 96, bits, back.data()), FLUTE_OK) << message();
    EXPECT_EQ(codes, back) << bits << " bits";
  }
  uint8_t codes[33] = {};
  uint32_t words[4] = {};
  EXPECT_ERROR(flute_pack_codes(codes, 33, 4, words), FLUTE_INVALID_ARGUMENT, "33");
  EXPECT_ERROR(flute_pack_codes(codes, 32, 9, words), FLUTE_INVALID_ARGUMENT, "bits");
  EXPECT_ERROR(flute_unpack_codes(words, -32, 4, codes), FLUTE_INVALID_ARGUMENT, "-32");
}

TEST(Capi, NamedCodebooks) {
  float values[256];
  float max_magnitude = 0;
  ASSERT_EQ(flute_codebook_named("int", 4, values, &max_magnitude), FLUTE_OK) << message();
  EXPECT_EQ(values[0], -8.0f);
  EXPECT_EQ(values[15], 7.0f);
  EXPECT_EQ(max_magnitude, 7.0f);
  ASSERT_EQ(flute_codebook_named("nf", 8, values, nullptr), FLUTE_OK) << message();
  EXPECT_EQ(std::vector<float>(values, values + 256), flute::nf_codebook(8).values);
  EXPECT_ERROR(flute_codebook_named("ternary", 2, values, nullptr), FLUTE_INVALID_ARGUMENT, "ternary");
  EXPECT_ERROR(flute_codebook_named("nf", 9, values, nullptr), FLUTE_INVALID_ARGUMENT, "9");
}

TEST(Capi, FittedCodebookIsTheCppOne) {
  const auto weight = normal_values(32 * 128);
  float values[4];
  ASSERT_EQ(flute_codebook_fit_kmeans(weight.data(), FLUTE_F32, 32, 128, 2, 64, nullptr, values), FLUTE_OK)
      << message();
  EXPECT_EQ(std::vector<float>(values, values + 4),
            flute::fit_kmeans_codebook(weight.data(), flute::DType::kF32, 32, 128, 2, 64).values);
}

TEST(Capi, StackedMatrixKnowsItsSegments) {
  QuantizeCase first, second;
  second.codebook.back() = 0.875f;  // a table of its own
  const auto packed_first = first.quantize(), packed_second = second.quantize();
  const flute_packed_view view_first = view_of(packed_first), view_second = view_of(packed_second);
  const flute_packed_view* segments[] = {&view_first, &view_second};
  flute_matrix* handle = nullptr;
  ASSERT_EQ(flute_matrix_create(kCpu, FLUTE_F32, segments, 2, nullptr, &handle), FLUTE_OK) << message();
  const Owned<flute_matrix> matrix(handle);

  flute_matrix_info info = {};
  info.size = sizeof(info);
  ASSERT_EQ(flute_matrix_get_info(matrix.get(), &info), FLUTE_OK) << message();
  EXPECT_EQ(info.n, 128);
  EXPECT_EQ(info.k, 96);
  EXPECT_EQ(info.bits, 3);
  EXPECT_EQ(info.group_size, 32);
  EXPECT_EQ(info.segment_count, 2);
  EXPECT_EQ(info.device.kind, FLUTE_CPU);
  EXPECT_GT(info.bytes, 0u);

  flute_packed* back = nullptr;
  ASSERT_EQ(flute_matrix_to_packed(matrix.get(), 1, &back), FLUTE_OK) << message();
  const Owned<flute_packed> owned_back(back);
  const flute_packed_view view_back = view_of(owned_back);
  EXPECT_EQ(std::memcmp(view_back.codes, view_second.codes, 64 * 9 * sizeof(uint32_t)), 0);
  EXPECT_EQ(std::memcmp(view_back.scales, view_second.scales, 64 * 3 * sizeof(uint16_t)), 0);
  EXPECT_EQ(std::memcmp(view_back.codebook, view_second.codebook, 8 * sizeof(float)), 0);
  EXPECT_ERROR(flute_matrix_to_packed(matrix.get(), 2, &back), FLUTE_INVALID_ARGUMENT, "segment");

  size_t bytes = 1;
  ASSERT_EQ(flute_gemm_workspace_bytes(matrix.get(), 16, FLUTE_F32, &bytes), FLUTE_OK) << message();
  EXPECT_EQ(bytes, 0u);
  EXPECT_EQ(flute_workspace_init(kCpu, nullptr, 0, nullptr), FLUTE_OK) << message();
}

TEST(Capi, MissingDeviceIsRefused) {
  QuantizeCase test;
  const auto packed = test.quantize();
  const flute_packed_view view = view_of(packed);
  const flute_packed_view* segments[] = {&view};
  flute_matrix* matrix = nullptr;
  EXPECT_ERROR(flute_matrix_create({FLUTE_CUDA, 4096}, FLUTE_F16, segments, 1, nullptr, &matrix), FLUTE_UNSUPPORTED,
               "CUDA");
  EXPECT_ERROR(flute_matrix_create({7, 0}, FLUTE_F16, segments, 1, nullptr, &matrix), FLUTE_INVALID_ARGUMENT, "7");
  EXPECT_ERROR(flute_workspace_init({FLUTE_CUDA, 4096}, nullptr, 0, nullptr), FLUTE_UNSUPPORTED, "CUDA");
  EXPECT_EQ(matrix, nullptr);
}

// A binding compiled against another version of the header passes structs of another size.
TEST(Capi, StructSizesAreHonoured) {
  QuantizeCase test;
  flute_packed* packed = nullptr;
  test.args.size = 0;
  EXPECT_ERROR(flute_quantize_rtn(&test.args, &packed), FLUTE_INVALID_ARGUMENT, "size");
  test.args.size = sizeof(test.args);

  struct Newer {
    flute_quantize_args known;
    int64_t unknown;
  } newer = {test.args, 0};
  newer.known.size = sizeof(newer);
  ASSERT_EQ(flute_quantize_rtn(&newer.known, &packed), FLUTE_OK) << message();
  flute_packed_destroy(packed);
  packed = nullptr;
  newer.unknown = 1;
  EXPECT_ERROR(flute_quantize_rtn(&newer.known, &packed), FLUTE_UNSUPPORTED, "args");
  EXPECT_EQ(packed, nullptr);
}

TEST(Capi, BadArgumentsAreNamed) {
  flute_packed* packed = nullptr;
  {
    QuantizeCase test;
    test.weight[96 * 3 + 7] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_ERROR(flute_quantize_rtn(&test.args, &packed), FLUTE_INVALID_ARGUMENT, "3");
  }
  {
    QuantizeCase test;
    test.args.dtype = 9;
    EXPECT_ERROR(flute_quantize_rtn(&test.args, &packed), FLUTE_INVALID_ARGUMENT, "args.dtype");
  }
  {
    QuantizeCase test;
    test.args.bits = 40;
    EXPECT_ERROR(flute_quantize_rtn(&test.args, &packed), FLUTE_INVALID_ARGUMENT, "bits");
  }
  {
    QuantizeCase test;
    test.args.k = 100;
    EXPECT_ERROR(flute_quantize_rtn(&test.args, &packed), FLUTE_INVALID_ARGUMENT, "100");
  }
  {
    QuantizeCase test;
    test.args.codebook_rows = 5;
    EXPECT_ERROR(flute_quantize_rtn(&test.args, &packed), FLUTE_INVALID_ARGUMENT, "codebook_rows");
  }
  EXPECT_EQ(packed, nullptr);

  QuantizeCase test;
  const auto good = test.quantize();
  flute_packed_view view = view_of(good);
  view.n = std::numeric_limits<int64_t>::max() / 2;
  float out[96];
  EXPECT_ERROR(flute_dequantize(&view, 0, 1, FLUTE_F32, out), FLUTE_INVALID_ARGUMENT, "view");
  view = view_of(good);
  EXPECT_ERROR(flute_dequantize(&view, 60, 65, FLUTE_F32, out), FLUTE_INVALID_ARGUMENT, "65");
  view.codes = nullptr;
  EXPECT_ERROR(flute_dequantize(&view, 0, 1, FLUTE_F32, out), FLUTE_INVALID_ARGUMENT, "view.codes");
}

TEST(Capi, NullIsAnErrorEverywhereAndDestroyTakesIt) {
  flute_packed_view view = {};
  view.size = sizeof(view);
  flute_matrix_info info = {};
  info.size = sizeof(info);
  float values[256];
  size_t bytes = 0;
  EXPECT_ERROR(flute_threads_create(1, nullptr), FLUTE_INVALID_ARGUMENT, "threads");
  EXPECT_ERROR(flute_codebook_named(nullptr, 4, values, nullptr), FLUTE_INVALID_ARGUMENT, "name");
  EXPECT_ERROR(flute_codebook_named("nf", 4, nullptr, nullptr), FLUTE_INVALID_ARGUMENT, "values");
  EXPECT_ERROR(flute_codebook_read(nullptr, nullptr, values, 256), FLUTE_INVALID_ARGUMENT, "path");
  EXPECT_ERROR(flute_codebook_fit_kmeans(nullptr, FLUTE_F32, 32, 32, 2, 32, nullptr, values), FLUTE_INVALID_ARGUMENT,
               "weight");
  EXPECT_ERROR(flute_pack_codes(nullptr, 32, 4, nullptr), FLUTE_INVALID_ARGUMENT, "codes");
  EXPECT_ERROR(flute_unpack_codes(nullptr, 32, 4, nullptr), FLUTE_INVALID_ARGUMENT, "words");
  EXPECT_ERROR(flute_packed_get_view(nullptr, &view), FLUTE_INVALID_ARGUMENT, "packed");
  EXPECT_ERROR(flute_quantize_rtn(nullptr, nullptr), FLUTE_INVALID_ARGUMENT, "args");
  EXPECT_ERROR(flute_quantize_mse(nullptr, nullptr), FLUTE_INVALID_ARGUMENT, "args");
  EXPECT_ERROR(flute_dequantize(nullptr, 0, 1, FLUTE_F32, values), FLUTE_INVALID_ARGUMENT, "view");
  EXPECT_ERROR(flute_matrix_create(kCpu, FLUTE_F32, nullptr, 1, nullptr, nullptr), FLUTE_INVALID_ARGUMENT, "matrix");
  EXPECT_ERROR(flute_matrix_get_info(nullptr, &info), FLUTE_INVALID_ARGUMENT, "matrix");
  EXPECT_ERROR(flute_matrix_to_packed(nullptr, 0, nullptr), FLUTE_INVALID_ARGUMENT, "matrix");
  EXPECT_ERROR(flute_gemm(nullptr, nullptr), FLUTE_INVALID_ARGUMENT, "matrix");
  EXPECT_ERROR(flute_gemm_workspace_bytes(nullptr, 1, FLUTE_F32, &bytes), FLUTE_INVALID_ARGUMENT, "matrix");
  EXPECT_ERROR(flute_workspace_init(kCpu, nullptr, 16, nullptr), FLUTE_INVALID_ARGUMENT, "workspace");
  EXPECT_ERROR(flute_checkpoint_open(nullptr, nullptr), FLUTE_INVALID_ARGUMENT, "path");
  EXPECT_ERROR(flute_checkpoint_get_layer(nullptr, "a", &view), FLUTE_INVALID_ARGUMENT, "checkpoint");
  EXPECT_ERROR(flute_checkpoint_load_matrix(nullptr, kCpu, FLUTE_F32, nullptr, 1, nullptr, nullptr),
               FLUTE_INVALID_ARGUMENT, "checkpoint");
  EXPECT_EQ(flute_threads_size(nullptr), 1);
  EXPECT_EQ(flute_checkpoint_layer_count(nullptr), 0);
  EXPECT_EQ(flute_checkpoint_layer_name(nullptr, 0), nullptr);
  flute_threads_destroy(nullptr);
  flute_packed_destroy(nullptr);
  flute_matrix_destroy(nullptr);
  flute_checkpoint_destroy(nullptr);
}

TEST(Capi, MessageBelongsToTheThread) {
  EXPECT_ERROR(flute_codebook_named("mine", 4, nullptr, nullptr), FLUTE_INVALID_ARGUMENT, "values");
  const std::string before = message();
  std::thread([] {
    EXPECT_EQ(message(), "");
    EXPECT_ERROR(flute_packed_get_view(nullptr, nullptr), FLUTE_INVALID_ARGUMENT, "packed");
  }).join();
  EXPECT_EQ(message(), before);
}

TEST(Capi, FilesThatAreNotThereAreIoErrors) {
  flute_checkpoint* checkpoint = nullptr;
  EXPECT_ERROR(flute_checkpoint_open("/nonexistent/model", &checkpoint), FLUTE_IO, "/nonexistent/model");
  int32_t bits = 0;
  float values[256];
  EXPECT_ERROR(flute_codebook_read("/nonexistent/table.json", &bits, values, 256), FLUTE_IO, "table.json");
}

// A folder with one quantized layer, "layer", written by hand as docs/format.md has it.
class CapiCheckpoint : public Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_);
    const flute_packed_view view = view_of(packed_);
    const size_t code_bytes = 64 * 9 * 4, scale_bytes = 64 * 3 * 2, codebook_bytes = 8 * 4;
    std::ostringstream text;
    text << R"({"layer.weight_packed": {"dtype": "I32", "shape": [64, 9], "data_offsets": [0, )" << code_bytes
         << R"(]}, "layer.weight_scale": {"dtype": "F16", "shape": [64, 3], "data_offsets": [)" << code_bytes << ", "
         << code_bytes + scale_bytes
         << R"(]}, "layer.weight_codebook": {"dtype": "F32", "shape": [8], "data_offsets": [)"
         << code_bytes + scale_bytes << ", " << code_bytes + scale_bytes + codebook_bytes << "]}}";
    const std::string header = text.str();
    std::ofstream file(folder_ / "model.safetensors", std::ios::binary);
    const uint64_t header_size = header.size();
    file.write(reinterpret_cast<const char*>(&header_size), sizeof(header_size));
    file << header;
    file.write(reinterpret_cast<const char*>(view.codes), static_cast<std::streamsize>(code_bytes));
    file.write(static_cast<const char*>(view.scales), static_cast<std::streamsize>(scale_bytes));
    file.write(reinterpret_cast<const char*>(view.codebook), static_cast<std::streamsize>(codebook_bytes));
    std::ofstream(folder_ / "config.json") << R"({"quantization_config": {"quant_method": "flute",
        "format_version": 1, "bits": 3, "group_size": 32, "codebook": "nf"}})";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Owned<flute_packed> packed_ = QuantizeCase().quantize();
  std::filesystem::path folder_ =
      std::filesystem::path(::testing::TempDir()) / ("flute_capi_" + std::to_string(std::random_device{}()));
};

TEST_F(CapiCheckpoint, LayersOpenByName) {
  flute_checkpoint* handle = nullptr;
  ASSERT_EQ(flute_checkpoint_open(folder_.c_str(), &handle), FLUTE_OK) << message();
  Owned<flute_checkpoint> checkpoint(handle);
  ASSERT_EQ(flute_checkpoint_layer_count(handle), 1);
  EXPECT_STREQ(flute_checkpoint_layer_name(handle, 0), "layer");
  EXPECT_EQ(flute_checkpoint_layer_name(handle, 1), nullptr);
  EXPECT_EQ(flute_checkpoint_layer_name(handle, -1), nullptr);

  flute_packed_view view = {};
  view.size = sizeof(view);
  ASSERT_EQ(flute_checkpoint_get_layer(handle, "layer", &view), FLUTE_OK) << message();
  std::vector<float> from_file(64 * 96), from_memory(64 * 96);
  const flute_packed_view original = view_of(packed_);
  ASSERT_EQ(flute_dequantize(&view, 0, 64, FLUTE_F32, from_file.data()), FLUTE_OK) << message();
  ASSERT_EQ(flute_dequantize(&original, 0, 64, FLUTE_F32, from_memory.data()), FLUTE_OK) << message();
  EXPECT_EQ(from_file, from_memory);

  const char* layers[] = {"layer", "layer"};
  flute_matrix* matrix_handle = nullptr;
  ASSERT_EQ(flute_checkpoint_load_matrix(handle, kCpu, FLUTE_F32, layers, 2, nullptr, &matrix_handle), FLUTE_OK)
      << message();
  const Owned<flute_matrix> matrix(matrix_handle);
  checkpoint.reset();  // the matrix stands on its own
  std::vector<float> identity(96 * 96), y(96 * 128);
  for (size_t i = 0; i < 96; ++i) identity[i * 97] = 1.0f;
  flute_gemm_args args = {};
  args.size = sizeof(args);
  args.m = 96;
  args.x = identity.data();
  args.y = y.data();
  args.dtype = FLUTE_F32;
  ASSERT_EQ(flute_gemm(matrix.get(), &args), FLUTE_OK) << message();
  for (size_t k = 0; k < 96; ++k) {
    for (size_t n = 0; n < 128; ++n) EXPECT_EQ(y[k * 128 + n], from_memory[n % 64 * 96 + k]);
  }
}

TEST_F(CapiCheckpoint, UnknownLayerIsNamed) {
  flute_checkpoint* handle = nullptr;
  ASSERT_EQ(flute_checkpoint_open(folder_.c_str(), &handle), FLUTE_OK) << message();
  const Owned<flute_checkpoint> checkpoint(handle);
  flute_packed_view view = {};
  view.size = sizeof(view);
  EXPECT_ERROR(flute_checkpoint_get_layer(handle, "layer.7", &view), FLUTE_INVALID_FORMAT, "layer.7");
}

}  // namespace
