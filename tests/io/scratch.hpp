#pragma once
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/seed.hpp"
#include "flute/dtype.hpp"
#include "flute/error.hpp"
#include "io/json.hpp"
#include "io/safetensors.hpp"

namespace flute::io {

/// A folder of a test's own, removed at its end.
class Scratch {
 public:
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "flute-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void put(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string get(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Names of all entries of a folder, sorted, to see that nothing was left behind.
inline std::vector<std::string> entries(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

/// `action` must throw an Error of `code` whose message is one line holding every one of `parts`.
template <typename Action>
void expect_error(ErrorCode code, const std::vector<std::string>& parts, const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.code(), code) << message;
    EXPECT_EQ(message.find('\n'), message.npos) << message;
    for (const std::string& part : parts) EXPECT_NE(message.find(part), message.npos) << part << "\n  in: " << message;
    return;
  }
  ADD_FAILURE() << "expected an error with: " << (parts.empty() ? "" : parts.front());
}

/// The bytes of a safetensors file with this header text.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  std::string bytes(sizeof size, '\0');
  std::memcpy(bytes.data(), &size, sizeof size);
  return bytes + header + data;
}

struct TestTensor {
  TensorPlan plan;
  std::string data;
};

inline void write_tensors(const std::filesystem::path& path, const std::vector<TestTensor>& tensors) {
  std::vector<TensorPlan> plans;
  for (const TestTensor& tensor : tensors) plans.push_back(tensor.plan);
  SafetensorsWriter writer(path, plans);
  for (size_t i = 0; i < tensors.size(); ++i) writer.write(i, std::as_bytes(std::span(tensors[i].data)));
  writer.finish();
}

/// A matrix of `dtype` from fp32 values.
inline TestTensor matrix(const std::string& name, int64_t n, int64_t k, const std::vector<float>& values,
                         DType dtype = DType::kBF16) {
  std::string data(values.size() * dtype_size(dtype), '\0');
  convert_from_f32(values.data(), data.data(), dtype, values.size());
  return {{name, std::string(safetensors_name(dtype)), {n, k}}, data};
}

inline std::vector<float> random_values(std::mt19937_64& random, int64_t count, float deviation = 0.02f) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

}  // namespace flute::io
