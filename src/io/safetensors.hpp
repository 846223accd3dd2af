#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flute/dtype.hpp"

namespace flute::io {

/// One tensor of a safetensors file. `data` is aligned to the element (the reader copies where the file is not).
struct TensorView {
  std::string name;
  std::string dtype;  ///< as in the file: "BF16", "F16", "F32", "I32", "U8", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};

/// The float dtype of a tensor; throws kInvalidFormat naming `file` and tensor when it is not F32, F16 or BF16.
DType float_dtype(const TensorView& tensor, const std::filesystem::path& file);
/// "F32", "F16" or "BF16".
std::string_view safetensors_name(DType dtype);
/// Bits of one element of a safetensors dtype name; 0 when unknown.
int safetensors_dtype_bits(std::string_view dtype);

/// A memory-mapped safetensors file. Everything in the header is checked on opening: lengths, dtypes, shapes
/// (overflow), offsets (range, overlap, holes), duplicate names. The header is limited to 100 MB as in the reference
/// implementation.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::filesystem::path& path);
  /// The same on a buffer that outlives the result (for tests and fuzzing); `path` is used in messages.
  static SafetensorsFile from_bytes(std::span<const std::byte> bytes, const std::filesystem::path& path);
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  const std::filesystem::path& path() const;
  const std::vector<TensorView>& tensors() const;              ///< in file order
  const std::map<std::string, std::string>& metadata() const;  ///< `__metadata__`

 private:
  struct Impl;
  explicit SafetensorsFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// What a writer is going to write: the header needs all shapes first.
struct TensorPlan {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  /// Throws kInvalidArgument where the shape overflows or the dtype is unknown.
  int64_t bytes() const;
};

/// Writes a new safetensors file with every tensor aligned to its element. The whole size is reserved first, so a full
/// disk is noticed before the work. Tensors may be written in any order, one after another or side by side, each in
/// pieces that follow one another. Errors (no space, no permission) throw kIo naming the file.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, std::span<const TensorPlan> plans);
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  ~SafetensorsWriter();
  /// The next bytes of tensor `index` of the plans.
  void write(size_t index, std::span<const std::byte> bytes);
  /// Checks that every planned byte came, and closes.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace flute::io
