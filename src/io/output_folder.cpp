#include "io/output_folder.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>

#include "base/fail.hpp"

namespace flute::io {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingleShard = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr std::string_view kTemporaryTag = ".flute-tmp-";

/// As transformers writes its JSON files.
std::string to_text(const nlohmann::ordered_json& json) { return json.dump(2) + "\n"; }

[[noreturn]] void fail_filesystem(const fs::filesystem_error& error, const fs::path& path) {
  fail_errno(error.path1().empty() ? path : error.path1(), "use", error.code().value());
}

bool lies_in(const fs::path& path, const fs::path& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

void check_apart(const Checkpoint& source, const fs::path& target) {
  const auto clash = [&](const fs::path& other, std::string_view how) {
    fail(ErrorCode::kInvalidArgument, "{}: expected a target folder apart from the source {}, found one that {}",
         target.string(), other.string(), how);
  };
  const fs::path path = resolved(source.path());
  if (path == target) clash(path, "is the same");
  if (lies_in(path, target)) clash(path, "holds the source");
  if (is_folder(path) && lies_in(target, path)) clash(path, "lies inside it");
  for (const SafetensorsFile& shard : source.shards()) {
    const fs::path file = resolved(shard.path());
    if (lies_in(file, target)) clash(file, "holds the source");
  }
}

void check_may_overwrite(const fs::path& target) {
  if (!is_folder(target)) {
    fail(ErrorCode::kInvalidArgument, "{}: expected a folder to overwrite, found something else", target.string());
  }
  bool is_empty = true;
  bool is_checkpoint = false;
  for (const auto& entry : fs::directory_iterator(target)) {
    is_empty = false;
    is_checkpoint =
        is_checkpoint || entry.path().filename() == "config.json" || entry.path().extension() == ".safetensors";
  }
  if (!is_empty && !is_checkpoint) {
    fail(ErrorCode::kInvalidArgument, "{}: expected a checkpoint to overwrite, found a folder without one",
         target.string());
  }
}

FileDescriptor open_folder(const fs::path& path) {
  return FileDescriptor(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

/// 0 where the folder is now locked until the descriptor closes (or the process ends, however it ends), else errno:
/// EWOULDBLOCK where another process has it, something else where the file system knows no locks.
int lock(const FileDescriptor& folder) { return ::flock(folder.get(), LOCK_EX | LOCK_NB) == 0 ? 0 : errno; }

/// Removes temporary folders of the same target whose process is gone.
void remove_stale(const fs::path& target) {
  const std::string prefix = target.filename().string() + std::string(kTemporaryTag);
  std::vector<fs::path> stale;
  for (const auto& entry : fs::directory_iterator(target.parent_path())) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(prefix) && name.find_first_not_of("0123456789", prefix.size()) == name.npos) {
      stale.push_back(entry.path());
    }
  }
  for (const fs::path& path : stale) {
    const FileDescriptor folder = open_folder(path);
    std::error_code ignored;  // it costs disk space, not correctness
    if (lock(folder) == 0) fs::remove_all(path, ignored);
  }
}

bool is_weights_file(const fs::path& path) {
  const std::string name = path.filename().string();
  const std::string extension = path.extension().string();
  constexpr std::array kWeightExtensions = {".safetensors", ".pt", ".pth",     ".ckpt",
                                            ".gguf",        ".h5", ".msgpack", ".onnx"};
  return std::find(kWeightExtensions.begin(), kWeightExtensions.end(), extension) != kWeightExtensions.end() ||
         name.ends_with(".safetensors.index.json") || name.starts_with("pytorch_model");
}

}  // namespace

fs::path resolved(const fs::path& path) {
  try {
    const fs::path result = fs::weakly_canonical(fs::absolute(path)).lexically_normal();
    return result.has_filename() ? result : result.parent_path();
  } catch (const fs::filesystem_error& error) {
    fail_filesystem(error, path);
  }
}

OutputFolder::OutputFolder(const Checkpoint& source, const fs::path& target, bool overwrite)
    : source_(source), target_(resolved(target)) {
  check_apart(source, target_);
  try {
    if (path_exists(target_)) {
      if (!overwrite) {
        fail(ErrorCode::kInvalidArgument, "{}: expected a target that does not exist yet (or --overwrite), found one",
             target_.string());
      }
      check_may_overwrite(target_);
    }
    for (fs::path parent = target_.parent_path(); !path_exists(parent); parent = parent.parent_path()) {
      made_parents_.insert(made_parents_.begin(), parent);
    }
    fs::create_directories(target_.parent_path());
    remove_stale(target_);
  } catch (const fs::filesystem_error& error) {
    fail_filesystem(error, target_);
  }
  for (int64_t number = ::getpid();; ++number) {
    temporary_ = target_;
    temporary_ += fmt::format("{}{}", kTemporaryTag, number);
    if (::mkdir(temporary_.c_str(), 0777) != 0) {
      if (errno == EEXIST) continue;
      fail_errno(temporary_, "create", errno);
    }
    lock_ = open_folder(temporary_);
    // Between mkdir and the lock another process may have taken the folder for a stale one: then try the next name.
    if (lock(lock_) != EWOULDBLOCK && path_exists(temporary_)) return;
  }
}

OutputFolder::~OutputFolder() {
  if (committed_) return;
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
  for (auto parent = made_parents_.rbegin(); parent != made_parents_.rend(); ++parent) fs::remove(*parent, ignored);
}

SafetensorsWriter OutputFolder::start_shard(const SafetensorsFile& shard, std::span<const TensorPlan> plans) {
  const bool is_single_file = !is_folder(source_.path());
  const fs::path name = is_single_file ? fs::path(kSingleShard) : shard.path().lexically_relative(source_.path());
  if (name != kSingleShard) {
    for (const TensorPlan& plan : plans) {
      weight_map_.emplace(plan.name, name.string());
      total_bytes_ += plan.bytes();
    }
  }
  if (name.has_parent_path()) {
    std::error_code error;
    fs::create_directories(temporary_ / name.parent_path(), error);
    if (error) fail_errno(temporary_ / name.parent_path(), "create", error.value());
  }
  return SafetensorsWriter(temporary_ / name, plans);
}

void OutputFolder::write_index() const {
  if (weight_map_.empty()) return;
  nlohmann::ordered_json index = read_json_file(source_.path() / kIndexName);
  auto& metadata = index["metadata"];
  if (!metadata.is_object()) metadata = nlohmann::ordered_json::object();
  metadata["total_size"] = total_bytes_;
  index["weight_map"] = nlohmann::json(weight_map_);
  write_file(temporary_ / kIndexName, to_text(index));
}

void OutputFolder::carry_over() const {
  if (!is_folder(source_.path())) return;  // a single file has no companions
  constexpr int kMaxDepth = 16;
  try {
    constexpr auto kOptions = fs::directory_options::follow_directory_symlink;
    for (auto entry = fs::recursive_directory_iterator(source_.path(), kOptions); entry != fs::end(entry); ++entry) {
      const fs::path& path = entry->path();
      const fs::path relative = path.lexically_relative(source_.path());
      if (entry.depth() > kMaxDepth) {
        fail(ErrorCode::kIo, "{}: expected at most {} levels of folders, found more (a link to itself?)", path.string(),
             kMaxDepth);
      }
      if (entry->is_directory()) {
        if (path.filename() == ".git" || path.filename() == ".cache") entry.disable_recursion_pending();
      } else if (entry->is_regular_file()) {
        if (relative == "config.json" || is_weights_file(path)) continue;
        fs::create_directories((temporary_ / relative).parent_path());
        copy_contents(path, temporary_ / relative);
      } else if (!entry->exists()) {
        fail(ErrorCode::kIo, "{}: expected a file to carry over, found a link to nothing", path.string());
      }
    }
  } catch (const fs::filesystem_error& error) {
    fail_filesystem(error, source_.path());
  }
}

void OutputFolder::commit(const nlohmann::ordered_json& config) {
  write_index();
  write_file(temporary_ / "config.json", to_text(config));
  carry_over();
  bool done = false;
#if defined(__linux__) && defined(RENAME_EXCHANGE)
  if (path_exists(target_)) {
    done = ::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) == 0;
  }
#endif
  fs::path former = temporary_;  // where the exchange put it
  if (!done && path_exists(target_)) {
    former += "0";
    if (::rename(target_.c_str(), former.c_str()) != 0) fail_errno(target_, "replace", errno);
  }
  if (!done && ::rename(temporary_.c_str(), target_.c_str()) != 0) {
    const int error = errno;
    if (former != temporary_) ::rename(former.c_str(), target_.c_str());
    fail_errno(target_, "create", error);
  }
  committed_ = true;
  std::error_code ignored;
  fs::remove_all(former, ignored);
}

}  // namespace flute::io
