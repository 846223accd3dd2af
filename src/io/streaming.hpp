#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "io/files.hpp"
#include "io/pipelines.hpp"
#include "io/safetensors.hpp"

namespace flute::io {

/// Input bytes handled between two calls of a Progress: some 20 ms of quantizing on one core, large enough that no
/// system call matters, small enough that input and result of a chunk stay in the cache.
constexpr int64_t kChunkBytes = int64_t{8} << 20;

/// Counts bytes for a Progress.
class Meter {
 public:
  Meter(const Progress& progress, int64_t total) : progress_(progress), total_(total) {}
  void add(int64_t bytes, std::string_view what) {
    done_ += bytes;
    if (progress_) progress_(done_, total_, what);
  }

 private:
  const Progress& progress_;
  int64_t done_ = 0;
  int64_t total_;
};

/// Calls `body(begin, end)` for the rows of a mapped tensor in chunks of about kChunkBytes, reading ahead and letting
/// go of what is done. `row_bytes` must be what a row takes in `tensor`.
template <typename Body>
void for_row_chunks(const TensorView& tensor, int64_t rows, int64_t row_bytes, Meter& meter, std::string_view what,
                    const Body& body) {
  const int64_t chunk = std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, row_bytes));
  const auto part = [&](int64_t begin) {
    const int64_t end = std::min(begin + chunk, rows);
    return tensor.data.subspan(static_cast<size_t>(begin * row_bytes),
                               static_cast<size_t>(std::max<int64_t>(0, end - begin) * row_bytes));
  };
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t end = std::min(begin + chunk, rows);
    if (end < rows) prefetch_pages(part(end));
    body(begin, end);
    release_pages(part(begin));
    meter.add((end - begin) * row_bytes, what);
  }
}

/// Writes a tensor as it is.
inline void copy_tensor(const TensorView& tensor, SafetensorsWriter& writer, size_t index, Meter& meter) {
  for_row_chunks(
      tensor, static_cast<int64_t>(tensor.data.size()), 1, meter, tensor.name, [&](int64_t begin, int64_t end) {
        writer.write(index, tensor.data.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
      });
}

}  // namespace flute::io
