#include <sys/resource.h>

#include <csignal>
#include <utility>

#include "io/scratch.hpp"

namespace flute::io {
namespace {

void open_bytes(const std::string& bytes) {
  const std::vector<std::byte> copy(reinterpret_cast<const std::byte*>(bytes.data()),
                                    reinterpret_cast<const std::byte*>(bytes.data()) + bytes.size());
  SafetensorsFile::from_bytes(copy, "bad.safetensors");
}

TEST(Safetensors, WhatIsWrittenIsReadBackAligned) {
  std::mt19937_64 random = fresh_random();
  const Scratch scratch;
  std::vector<TestTensor> tensors;
  const std::vector<std::pair<std::string, int64_t>> dtypes = {
      {"U8", 1}, {"BF16", 2}, {"F32", 4}, {"I64", 8}, {"BOOL", 1}};
  for (int i = 0; i < 40; ++i) {
    const auto& [dtype, size] = dtypes[static_cast<size_t>(random_between(random, 0, 4))];
    const std::vector<int64_t> shape = {random_between(random, 0, 5), random_between(random, 1, 7)};
    std::string data(static_cast<size_t>(shape[0] * shape[1] * size), '\0');
    for (char& byte : data) byte = static_cast<char>(random_between(random, 0, 255));
    tensors.push_back({{fmt::format("t\"{}", i), dtype, shape}, data});
  }
  write_tensors(scratch / "a.safetensors", tensors);
  const SafetensorsFile file = SafetensorsFile::open(scratch / "a.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  ASSERT_EQ(file.tensors().size(), tensors.size());
  const std::string bytes = get(scratch / "a.safetensors");
  for (const TensorView& read : file.tensors()) {
    const auto written =
        std::find_if(tensors.begin(), tensors.end(), [&](const TestTensor& t) { return t.plan.name == read.name; });
    ASSERT_NE(written, tensors.end());
    EXPECT_EQ(read.dtype, written->plan.dtype);
    EXPECT_EQ(read.shape, written->plan.shape);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(read.data.data()), read.data.size()), written->data);
  }
  // Aligned in the file itself, so that a reader that maps it needs no copies.
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  EXPECT_EQ(header_bytes % 8, 0u);
  const nlohmann::ordered_json header = parse_json(bytes.substr(8, header_bytes), "header");
  for (const auto& item : header.items()) {
    if (item.key() == "__metadata__") continue;
    const auto bits = safetensors_dtype_bits(item.value()["dtype"].get<std::string>());
    EXPECT_EQ(item.value()["data_offsets"][0].get<int64_t>() % (bits / 8), 0) << item.key();
  }
}

TEST(Safetensors, TensorsAreAlignedWhateverTheHeadersLength) {
  for (size_t padding = 0; padding < 8; ++padding) {
    const std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})" + std::string(padding, ' ');
    const std::string text = safetensors_bytes(header, std::string("\x00\x00\x80\x3f", 4));
    const std::vector<std::byte> bytes(reinterpret_cast<const std::byte*>(text.data()),
                                       reinterpret_cast<const std::byte*>(text.data()) + text.size());
    const SafetensorsFile file = SafetensorsFile::from_bytes(bytes, "a");
    const std::byte* data = file.tensors()[0].data.data();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 4, 0u);
    EXPECT_EQ(load_as_f32(data, DType::kF32, 0), 1.0f);
  }
}

TEST(Safetensors, BadFilesAreRefusedWithTheirReason) {
  const auto one = [](const std::string& entry) { return "{\"a.weight\":" + entry + "}"; };
  const std::string data(64, '\0');
  struct Case {
    std::string bytes;
    std::vector<std::string> message;
  };
  const std::vector<Case> cases = {
      {"", {"at least 8 bytes", "found 0"}},
      {"1234567", {"at least 8 bytes", "found 7"}},
      {std::string("\xff\xff\xff\xff\xff\xff\xff\xff", 8), {"header length", "18446744073709551615"}},
      {std::string("\x01\xe1\xf5\x05\x00\x00\x00\x00", 8), {"header length", "100000000", "100000001"}},
      {std::string("\x10\x00\x00\x00\x00\x00\x00\x00{}", 10), {"header length", "2 bytes left", "found 16"}},
      {safetensors_bytes("", ""), {"not valid JSON"}},
      {safetensors_bytes("{", ""), {"not valid JSON at byte"}},
      {safetensors_bytes("[]", ""), {"expected an object", "[]"}},
      {safetensors_bytes("{\"a\xff\":1}", ""), {"not valid JSON"}},
      {safetensors_bytes(std::string(100000, '['), ""), {"levels of nesting"}},
      {safetensors_bytes(one("{\"x\":" + std::string(100000, '{')), ""), {"not valid JSON"}},
      {safetensors_bytes("{\"__metadata__\":{\"a\":1}}", ""), {"__metadata__", "'a'", "expected a string"}},
      {safetensors_bytes(one("1"), data), {"'a.weight'", "expected an object", "found 1"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[16]})"), data), {"'a.weight'", "data_offsets"}},
      {safetensors_bytes(one(R"({"dtype":"F99","shape":[16],"data_offsets":[0,64]})"), data), {"dtype", "F99"}},
      {safetensors_bytes(one(R"({"dtype":7,"shape":[16],"data_offsets":[0,64]})"), data), {"dtype", "found 7"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[-16],"data_offsets":[0,64]})"), data), {"shape", "-16"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[1.5],"data_offsets":[0,64]})"), data), {"shape", "1.5"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[1e30],"data_offsets":[0,64]})"), data), {"shape", "1e+30"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":16,"data_offsets":[0,64]})"), data), {"shape", "list"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":["x"],"data_offsets":[0,64]})"), data), {"shape", "x"}},
      // 2^32 * 2^32 = 0 and 2^62 * 4 = 0 modulo 2^64: must not look like an empty tensor.
      {safetensors_bytes(one(R"({"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]})"), ""),
       {"shape", "below 2^63"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]})"), ""),
       {"shape", "below 2^63"}},
      {safetensors_bytes(one(R"({"dtype":"F4","shape":[3],"data_offsets":[0,1]})"), "x"), {"whole bytes"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[16],"data_offsets":[-1,63]})"), data), {"data_offsets", "-1"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[16],"data_offsets":[64,0]})"), data), {"begin <= end"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[16],"data_offsets":[0,64,64]})"), data), {"data_offsets"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[16],"data_offsets":[0,18446744073709551615]})"), data),
       {"data_offsets", "<= 64", "18446744073709551615"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[17],"data_offsets":[0,68]})"), data), {"<= 64", "68"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[15],"data_offsets":[0,64]})"), data),
       {"'a.weight'", "expected 60 bytes", "found 64"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[15],"data_offsets":[0,60]})"), data),
       {"expected 60 bytes of tensors", "found 64"}},
      {safetensors_bytes(one(R"({"dtype":"F32","shape":[15],"data_offsets":[4,64]})"), data),
       {"'a.weight'", "nothing may lie between", "found 4"}},
      {safetensors_bytes(R"({"a":{"dtype":"U8","shape":[40],"data_offsets":[0,40]},
                             "b":{"dtype":"U8","shape":[32],"data_offsets":[32,64]}})",
                         data),
       {"'b'", "overlaps", "40", "found 32"}},
      {safetensors_bytes(R"({"a":{"dtype":"U8","shape":[32],"data_offsets":[0,32]},
                             "a":{"dtype":"U8","shape":[32],"data_offsets":[32,64]}})",
                         data),
       {"each key", "'a' twice"}},
      {safetensors_bytes(R"({"a\nb":{"dtype":"F99","shape":[],"data_offsets":[0,0]}})", ""), {"a\\x0ab"}},
  };
  for (const Case& one_case : cases) {
    std::vector<std::string> parts = one_case.message;
    parts.push_back("bad.safetensors: ");
    expect_error(ErrorCode::kInvalidFormat, parts, [&] { open_bytes(one_case.bytes); });
  }
}

TEST(Safetensors, EveryTruncationOfAFileIsRefused) {
  const Scratch scratch;
  write_tensors(scratch / "a.safetensors", {{{"a", "I32", {2, 3}}, std::string(24, 'x')}, {{"b", "U8", {5}}, "12345"}});
  const std::string bytes = get(scratch / "a.safetensors");
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THROW(open_bytes(bytes.substr(0, size)), Error) << size;
  }
  EXPECT_THROW(open_bytes(bytes + "x"), Error);
  EXPECT_NO_THROW(open_bytes(bytes));
}

TEST(Safetensors, WhatIsNotAFileIsNamed) {
  const Scratch scratch;
  expect_error(ErrorCode::kIo, {(scratch / "none").string(), "No such file"},
               [&] { SafetensorsFile::open(scratch / "none"); });
  expect_error(ErrorCode::kIo, {scratch.path().string(), "a folder"}, [&] { SafetensorsFile::open(scratch.path()); });
  expect_error(ErrorCode::kIo, {"/dev/null", "not a regular file"}, [] { SafetensorsFile::open("/dev/null"); });
}

TEST(SafetensorsWriter, NeverOverwritesAndChecksWhatItIsGiven) {
  const Scratch scratch;
  const std::vector<TensorPlan> plans = {{"a", "U8", {4}}};
  put(scratch / "there", "precious");
  expect_error(ErrorCode::kIo, {"there", "File exists"}, [&] { SafetensorsWriter(scratch / "there", plans); });
  EXPECT_EQ(get(scratch / "there"), "precious");
  SafetensorsWriter writer(scratch / "new", plans);
  const std::string five = "12345";
  EXPECT_THROW(writer.write(0, std::as_bytes(std::span(five))), Error);
  EXPECT_THROW(writer.finish(), Error);  // nothing came
  expect_error(ErrorCode::kInvalidArgument, {"'a'", "U9"}, [&] {
    const std::vector<TensorPlan> unknown = {{"a", "U9", {4}}};
    SafetensorsWriter(scratch / "other", unknown);
  });
}

TEST(SafetensorsWriter, AFileThatMayNotGrowIsAnErrorThatNamesIt) {
  const Scratch scratch;
  rlimit former{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &former), 0);
  const auto former_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = former;
  small.rlim_cur = 4096;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  expect_error(ErrorCode::kIo, {(scratch / "big").string(), "File too large"}, [&] {
    const std::vector<TensorPlan> plans = {{"a", "U8", {100000}}};
    SafetensorsWriter writer(scratch / "big", plans);
    const std::string data(100000, 'x');
    writer.write(0, std::as_bytes(std::span(data)));
    writer.finish();
  });
  ::setrlimit(RLIMIT_FSIZE, &former);
  std::signal(SIGXFSZ, former_handler);
}

}  // namespace
}  // namespace flute::io
