#pragma once
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "io/checkpoint.hpp"
#include "io/files.hpp"

namespace flute::io {

/// Absolute, links resolved as far as the path exists, no trailing slash.
std::filesystem::path resolved(const std::filesystem::path& path);

/// A checkpoint folder in the making. Everything is written to a temporary folder beside the target
/// (`<target>.flute-tmp-<n>`), which takes the target's name in commit(). Destroyed before that, it takes the temporary
/// folder with it. A killed process leaves its temporary folder behind but never a half target; whoever next writes to
/// the same target removes it (a lock on the folder tells those of living processes apart).
class OutputFolder {
 public:
  /// `source` outlives the folder. Throws where the target is the source, lies inside it or holds it, or exists and
  /// `overwrite` is not given. Only a folder that is empty or holds a checkpoint is ever overwritten.
  OutputFolder(const Checkpoint& source, const std::filesystem::path& target, bool overwrite);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  /// A writer for the counterpart of one of the source's shards.
  SafetensorsWriter start_shard(const SafetensorsFile& shard, std::span<const TensorPlan> plans);
  /// Writes index and config.json, copies the source's other files, and puts the folder in the target's place; a former
  /// one is replaced in one step where the file system can. Not copied are weights of any program (.safetensors,
  /// pytorch_model*, .pth, .gguf, ...), `.git` and `.cache`; links are followed.
  void commit(const nlohmann::ordered_json& config);

 private:
  void write_index() const;
  void carry_over() const;

  const Checkpoint& source_;
  std::filesystem::path target_, temporary_;
  std::vector<std::filesystem::path> made_parents_;  // outermost first
  FileDescriptor lock_;
  std::map<std::string, std::string> weight_map_;  // empty for a single shard, which needs no index
  int64_t total_bytes_ = 0;
  bool committed_ = false;
};

}  // namespace flute::io
