#include "model/calibrated_blocks.hpp"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "base/fail.hpp"
#include "io/json.hpp"
#include "io/output_folder.hpp"
#include "model/calibrated.hpp"

namespace flute::model {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kState = "state.json";

std::string text_of(uint64_t number) { return fmt::format("{:016x}", number); }

uint64_t digest_of_file(const fs::path& path) {
  const io::MappedFile file(path);
  return digest(file.bytes());
}

/// In place of a file that a kill may have left.
void remove_file(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
  if (error) io::fail_errno(path, "remove", error.value());
}

/// What tells two runs apart, in words: "bits (4, now 3)".
std::string differences(const Json& before, const Json& now) {
  std::vector<std::string> found;
  for (const auto& [key, value] : now.items()) {
    const Json former = before.is_object() && before.contains(key) ? before[key] : Json();
    if (former != value)
      found.push_back(fmt::format("{} ({}, now {})", key, io::describe(former), io::describe(value)));
  }
  return fmt::format("{}", fmt::join(found, ", "));
}

}  // namespace

uint64_t digest(std::span<const std::byte> bytes, uint64_t seed) {
  constexpr uint64_t kOdd = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio
  uint64_t state = seed ^ (bytes.size() * kOdd);
  for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min(sizeof(word), bytes.size() - at));
    state = (state ^ word) * kOdd;
    state ^= state >> 29;  // or high bits would never reach low ones
  }
  return state;
}

fs::path unfinished_folder(const fs::path& target) {
  fs::path folder = io::resolved(target);
  folder += ".flute-unfinished";
  return folder;
}

FinishedBlocks::FinishedBlocks(const fs::path& target, CalibratedRun run, DType scale_dtype, bool begin_anew)
    : folder_(unfinished_folder(target)), run_(std::move(run)), scale_dtype_(scale_dtype) {
  lock_folder();
  if (!io::path_exists(folder_ / kState)) return;
  try {
    find(io::read_json_file(folder_ / kState));
  } catch (const Error& error) {
    if (!begin_anew)
      fail(error.code(), "{}; go on with what the folder was made with, or begin anew with --overwrite", error.what());
    blocks_.clear();
    remove_file(folder_ / kState);  // without it nothing else counts
  }
}

FinishedBlocks::~FinishedBlocks() {
  if (blocks_.empty()) remove();
}

void FinishedBlocks::lock_folder() {
  for (;;) {
    if (::mkdir(folder_.c_str(), 0777) != 0 && errno != EEXIST) io::fail_errno(folder_, "create", errno);
    lock_ = io::FileDescriptor(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (lock_.get() < 0 && errno == ENOENT) continue;  // another process has just removed it
    if (lock_.get() < 0) io::fail_errno(folder_, "open", errno);
    // Other errors: a file system without locks.
    if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      fail(ErrorCode::kIo, "{}: expected no other process at work on the same target, found one", folder_.string());
    }
    if (io::path_exists(folder_)) return;
  }
}

void FinishedBlocks::find(const Json& state) {
  const auto damaged = [&](const fs::path& file) {
    fail(ErrorCode::kInvalidFormat, "{}: expected what was written there, found a damaged file", file.string());
  };
  if (!state.is_object() || !state.contains("blocks") || !state["blocks"].is_array()) damaged(folder_ / kState);
  const std::string where = folder_.string();
  const std::string other = differences(state.value("arguments", Json()), run_.arguments);
  if (!other.empty()) {
    fail(ErrorCode::kInvalidArgument, "{}: expected finished blocks of the same arguments, found others: {}", where,
         other);
  }
  // What goes into the first block comes of both: the text is to blame where it differs.
  if (state.value("text", Json()) != text_of(run_.text)) {
    fail(ErrorCode::kInvalidArgument, "{}: expected finished blocks of the same calibration text, found another's",
         where);
  }
  bool is_same = state.value("input", Json()) == text_of(run_.input);
  for (const Json& block : state["blocks"]) {
    if (!is_same || !block.is_object()) break;
    const uint64_t source = run_.of_block(count());
    is_same = block.value("source", Json()) == text_of(source);
    const fs::path file = block_file(count());
    const uint64_t there = digest_of_file(file);
    if (block.value("file", Json()) != text_of(there)) damaged(file);
    blocks_.push_back({source, there});
  }
  if (!is_same) {
    fail(ErrorCode::kInvalidArgument, "{}: expected finished blocks of the same source model, found another's", where);
  }
  activations_ = digest_of_file(activations_file(count()));
  if (state.value("activations", Json()) != text_of(activations_)) damaged(activations_file(count()));
}

void FinishedBlocks::write_state() const {
  Json blocks = Json::array();
  for (const Block& block : blocks_) {
    blocks.push_back({{"source", text_of(block.source)}, {"file", text_of(block.file)}});
  }
  const Json state = {{"arguments", run_.arguments},
                      {"text", text_of(run_.text)},
                      {"input", text_of(run_.input)},
                      {"blocks", blocks},
                      {"activations", text_of(activations_)}};
  fs::path fresh = folder_ / kState;
  fresh += ".new";
  remove_file(fresh);
  io::write_file(fresh, state.dump(2) + "\n");
  if (::rename(fresh.c_str(), (folder_ / kState).c_str()) != 0) io::fail_errno(folder_ / kState, "replace", errno);
}

fs::path FinishedBlocks::block_file(int64_t block) const {
  return folder_ / fmt::format("block-{}.safetensors", block);
}

fs::path FinishedBlocks::activations_file(int64_t count) const {
  return folder_ / fmt::format("activations-{}.bin", count);
}

PackedMatrix FinishedBlocks::read(int64_t block, const io::PlannedTensor& planned) const {
  const io::SafetensorsFile file = io::SafetensorsFile::open(block_file(block));
  Codebook codebook;
  codebook.bits = planned.layer.bits;
  codebook.values.resize(size_t{1} << codebook.bits);
  PackedMatrix matrix = allocate_packed(planned.source->shape[0], planned.source->shape[1], planned.layer.group_size,
                                        scale_dtype_, codebook);
  const std::span<std::byte> parts[] = {std::as_writable_bytes(std::span(matrix.codes)), std::span(matrix.scales),
                                        std::as_writable_bytes(std::span(matrix.codebook))};
  const std::vector<io::TensorPlan> written = io::written_tensors(planned, scale_dtype_);
  for (size_t i = 0; i < written.size(); ++i) {
    const auto tensor = std::find_if(file.tensors().begin(), file.tensors().end(),
                                     [&](const io::TensorView& one) { return one.name == written[i].name; });
    if (tensor == file.tensors().end() || tensor->data.size() != parts[i].size()) {
      fail(ErrorCode::kInvalidFormat, "{}: expected tensor '{}' of {} bytes, found none", file.path().string(),
           io::printable(written[i].name), parts[i].size());
    }
    std::copy(tensor->data.begin(), tensor->data.end(), parts[i].begin());
  }
  return matrix;
}

ReplacedTensors FinishedBlocks::read_replaced(int64_t block, std::span<const io::PlannedTensor* const> planned) const {
  std::set<std::string> of_layers;
  for (const io::PlannedTensor* one : planned) {
    for (const io::TensorPlan& plan : io::written_tensors(*one, scale_dtype_)) of_layers.insert(plan.name);
  }
  const io::SafetensorsFile file = io::SafetensorsFile::open(block_file(block));
  ReplacedTensors result;
  for (const io::TensorView& tensor : file.tensors()) {
    if (of_layers.contains(tensor.name)) continue;
    result[tensor.name] = {{tensor.name, tensor.dtype, tensor.shape}, {tensor.data.begin(), tensor.data.end()}};
  }
  return result;
}

void FinishedBlocks::read_activations(std::span<float> activations) const {
  const io::MappedFile file(activations_file(count()));
  const std::span<std::byte> bytes = std::as_writable_bytes(activations);
  if (file.bytes().size() != bytes.size()) {
    fail(ErrorCode::kInvalidFormat, "{}: expected {} bytes, found {}", activations_file(count()).string(), bytes.size(),
         file.bytes().size());
  }
  std::copy(file.bytes().begin(), file.bytes().end(), bytes.begin());
}

void FinishedBlocks::add(std::span<const io::PlannedTensor* const> planned, const QuantizedBlock& block,
                         std::span<const float> activations) {
  std::vector<io::TensorPlan> plans;
  for (const io::PlannedTensor* one : planned) {
    for (io::TensorPlan& plan : io::written_tensors(*one, scale_dtype_)) plans.push_back(std::move(plan));
  }
  for (const auto& [name, tensor] : block.tensors) plans.push_back(tensor.plan);
  const fs::path file = block_file(count()), behind = activations_file(count() + 1);
  remove_file(file);
  io::SafetensorsWriter writer(file, plans);
  for (size_t i = 0; i < planned.size(); ++i) {
    const PackedMatrix& matrix = block.layers.find(planned[i]->prefix)->second;
    writer.write(3 * i, std::as_bytes(std::span(matrix.codes)));
    writer.write(3 * i + 1, matrix.scales);
    writer.write(3 * i + 2, std::as_bytes(std::span(matrix.codebook)));
  }
  size_t index = 3 * planned.size();
  for (const auto& [name, tensor] : block.tensors) writer.write(index++, tensor.data);
  writer.finish();
  remove_file(behind);
  io::OutputFile output(behind);
  output.reserve(static_cast<int64_t>(activations.size_bytes()));
  output.write_at(0, std::as_bytes(activations));
  output.finish();
  activations_ = digest(std::as_bytes(activations));
  blocks_.push_back({run_.of_block(count()), digest_of_file(file)});
  write_state();
  remove_file(activations_file(count() - 1));
}

void FinishedBlocks::remove() {
  blocks_.clear();
  std::error_code ignored;  // it costs disk space, not correctness
  fs::remove_all(folder_, ignored);
}

}  // namespace flute::model
