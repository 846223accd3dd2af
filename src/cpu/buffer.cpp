#include "cpu/buffer.hpp"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace flute::cpu {
namespace {

constexpr size_t kLine = 64;
// Reading a matrix once from end to end misses the TLB at every small page: with huge pages two threads read 30 GB/s
// instead of 26 (docs/cpu-kernels.md). Smaller buffers would waste more of a huge page than they gain.
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : kLine;
  const size_t total = (bytes + alignment - 1) / alignment * alignment;
  data_ = static_cast<std::byte*>(std::aligned_alloc(alignment, total));
  if (data_ == nullptr && total > 0) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kHugePage) madvise(data_, total, MADV_HUGEPAGE);  // a wish: what the kernel answers changes nothing
#endif
  if (total > 0) std::memset(data_, 0, total);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Buffer::~Buffer() { std::free(data_); }

}  // namespace flute::cpu
