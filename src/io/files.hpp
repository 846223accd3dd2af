#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace flute::io {

/// Throws kIo: `path: cannot <action>: <errno's text>`.
[[noreturn]] void fail_errno(const std::filesystem::path& path, std::string_view action, int error);

/// A name from a file as it may stand in a message of one line: control characters escaped, cut after `max_bytes`.
std::string printable(std::string_view text, size_t max_bytes = 200);

/// std::filesystem's questions without its own exceptions: what cannot be looked at is not there.
bool path_exists(const std::filesystem::path& path);
bool is_folder(const std::filesystem::path& path);

/// A whole regular file of at most `max_bytes`.
std::string read_file(const std::filesystem::path& path, size_t max_bytes);

/// A file descriptor that closes itself.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd = -1) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor();
  int get() const { return fd_; }
  int release();

 private:
  int fd_;
};

/// Opens a regular file (or a link to one) for reading; throws kIo naming it.
FileDescriptor open_for_reading(const std::filesystem::path& path);

/// A new file. Errors (it exists, no space, no permission) throw kIo naming it.
class OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path);
  /// Takes `bytes` of disk now, so that a full disk is noticed before the work, where the file system can.
  void reserve(int64_t bytes);
  void write_at(int64_t offset, std::span<const std::byte> bytes);
  /// Closes. The system writes to the disk when it sees fit: waiting for that (fsync) would make a run take as long as
  /// the disk needs for the result, several times the work itself.
  void finish();

 private:
  std::filesystem::path path_;
  FileDescriptor fd_;
};

void write_file(const std::filesystem::path& path, std::string_view text);
void copy_contents(const std::filesystem::path& source, const std::filesystem::path& target);

/// A regular file mapped read-only. It must not shrink while it is mapped.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

/// Tells the system that this part of a mapped file will be read next / will not be read again soon.
void prefetch_pages(std::span<const std::byte> mapped);
void release_pages(std::span<const std::byte> mapped);

}  // namespace flute::io
