#include "io/files.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>
#include <vector>

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

OutputFile::OutputFile(const std::filesystem::path& path)
    : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)) {
  if (fd_.get() < 0) fail_errno(path, "create", errno);
}

void OutputFile::reserve(int64_t bytes) {
#if defined(__linux__)
  if (bytes == 0 || ::fallocate(fd_.get(), 0, 0, bytes) == 0) return;
  if (errno == ENOSPC || errno == EFBIG || errno == EDQUOT) {
    const int error = errno;
    fail_errno(path_, fmt::format("reserve {} bytes", bytes), error);
  }
#endif
}

void OutputFile::write_at(int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(fd_.get(), bytes.data(), bytes.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_errno(path_, "write", errno);
    if (count == 0) fail_errno(path_, "write", ENOSPC);
    bytes = bytes.subspan(static_cast<size_t>(count));
    offset += count;
  }
}

void OutputFile::finish() {
  if (::close(fd_.release()) != 0) fail_errno(path_, "write", errno);
}

void write_file(const std::filesystem::path& path, std::string_view text) {
  OutputFile file(path);
  file.write_at(0, std::as_bytes(std::span(text)));
  file.finish();
}

void copy_contents(const std::filesystem::path& source, const std::filesystem::path& target) {
  const FileDescriptor input = open_for_reading(source);
  OutputFile output(target);
  std::vector<std::byte> buffer(size_t{1} << 20);
  for (int64_t offset = 0;;) {
    const ssize_t count = ::read(input.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_errno(source, "read", errno);
    if (count == 0) break;
    output.write_at(offset, std::span(buffer).first(static_cast<size_t>(count)));
    offset += count;
  }
  output.finish();
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

namespace {

/// The whole pages inside the range, or, with `outer`, those that it touches. A failure costs speed, not correctness.
void advise(std::span<const std::byte> mapped, int advice, bool outer) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto into_page = [page](const std::byte* at) { return reinterpret_cast<uintptr_t>(at) % page; };
  const auto to_next = [&](const std::byte* at) { return (page - into_page(at)) % page; };
  const std::byte* begin = mapped.data();
  const std::byte* end = begin + mapped.size();
  begin = outer ? begin - into_page(begin) : begin + to_next(begin);
  end = outer ? end + to_next(end) : end - into_page(end);
  if (begin < end) ::madvise(const_cast<std::byte*>(begin), static_cast<size_t>(end - begin), advice);
}

}  // namespace

void prefetch_pages(std::span<const std::byte> mapped) { advise(mapped, MADV_WILLNEED, true); }
void release_pages(std::span<const std::byte> mapped) { advise(mapped, MADV_DONTNEED, false); }

}  // namespace flute::io
