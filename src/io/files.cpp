#include "io/files.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include "base/fail.hpp"

namespace flute::io {

void fail_errno(const std::filesystem::path& path, std::string_view action, int error) {
  fail(ErrorCode::kIo, "{}: cannot {}: {}", path.string(), action, std::system_category().message(error));
}

std::string printable(std::string_view text, size_t max_bytes) {
  std::string result;
  for (const char c : text.substr(0, max_bytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      result += fmt::format("\\x{:02x}", byte);
    } else {
      result += c;
    }
  }
  if (text.size() > max_bytes) {
    while (!result.empty() && (result.back() & 0x80) != 0) result.pop_back();  // no half character
    result += "...";
  }
  return result;
}

bool path_exists(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

bool is_folder(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error);
}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

int FileDescriptor::release() { return std::exchange(fd_, -1); }

FileDescriptor open_for_reading(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) fail_errno(path, "open", errno);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) fail_errno(path, "read its size", errno);
  if (!S_ISREG(status.st_mode)) {
    fail(ErrorCode::kIo, "{}: expected a file, found {}", path.string(),
         S_ISDIR(status.st_mode) ? "a folder" : "something that is not a regular file");
  }
  return fd;
}

std::string read_file(const std::filesystem::path& path, size_t max_bytes) {
  const FileDescriptor fd = open_for_reading(path);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) fail_errno(path, "read its size", errno);
  std::string text;
  text.reserve(std::min(static_cast<size_t>(status.st_size), max_bytes));
  for (;;) {
    char buffer[1 << 16];
    const ssize_t count = ::read(fd.get(), buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_errno(path, "read", errno);
    if (count == 0) return text;
    if (text.size() + static_cast<size_t>(count) > max_bytes) {
      fail(ErrorCode::kInvalidFormat, "{}: expected at most {} bytes, found more", path.string(), max_bytes);
    }
    text.append(buffer, static_cast<size_t>(count));
  }
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  const FileDescriptor fd = open_for_reading(path);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) fail_errno(path, "read its size", errno);
  const auto size = static_cast<size_t>(status.st_size);
  if (size == 0) return;
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (address == MAP_FAILED) fail_errno(path, "map", errno);
  bytes_ = {static_cast<const std::byte*>(address), size};
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void release_pages(std::span<const std::byte> mapped) {
  // Whole pages inside the range only; a failure costs memory, not correctness.
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(mapped.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(mapped.data() + mapped.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace flute::io
