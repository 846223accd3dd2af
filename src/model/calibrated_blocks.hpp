#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "io/files.hpp"
#include "io/quantization_plan.hpp"
#include "model/linear.hpp"

namespace flute::model {

/// A number that differs where bytes differ, but for chance; no protection against intent.
uint64_t digest(std::span<const std::byte> bytes, uint64_t seed = 0);

/// What the finished blocks of a run follow from, in digests.
struct CalibratedRun {
  nlohmann::ordered_json arguments;  ///< an object, themselves
  uint64_t text = 0;
  uint64_t input = 0;                               ///< of the first block
  std::function<uint64_t(int64_t block)> of_block;  ///< of its source tensors
};

/// The blocks that a calibrated run has finished, in a folder beside its target (unfinished_folder): each block's
/// packed layers and changed norms, and the activations behind the last. The folder is locked while this lives, and
/// stays where at least one block is in it. `state.json`, which is replaced in one step, says what counts; files that
/// it does not name are left-overs of a kill and are written again.
class FinishedBlocks {
 public:
  /// Finds what a run with the same target left. Throws kInvalidArgument, naming what differs, where that was another
  /// run, and kInvalidFormat where a file is damaged; with `begin_anew` it is then removed instead. Throws kIo where
  /// another process is at work on the target.
  FinishedBlocks(const std::filesystem::path& target, CalibratedRun run, DType scale_dtype, bool begin_anew);
  ~FinishedBlocks();
  FinishedBlocks(const FinishedBlocks&) = delete;
  FinishedBlocks& operator=(const FinishedBlocks&) = delete;

  int64_t count() const { return static_cast<int64_t>(blocks_.size()); }
  /// A layer of a finished block.
  PackedMatrix read(int64_t block, const io::PlannedTensor& planned) const;
  /// A finished block's tensors that are none of the layers', `planned` being those of all layers.
  ReplacedTensors read_replaced(int64_t block, std::span<const io::PlannedTensor* const> planned) const;
  /// The activations behind the last finished block.
  void read_activations(std::span<float> activations) const;
  /// Block count() is finished: its layers, which are those of `planned`, and the activations behind it.
  void add(std::span<const io::PlannedTensor* const> planned, const QuantizedBlock& block,
           std::span<const float> activations);
  /// The target is there: removes everything.
  void remove();

 private:
  void lock_folder();
  void find(const nlohmann::ordered_json& state);
  void write_state() const;
  std::filesystem::path block_file(int64_t block) const;
  std::filesystem::path activations_file(int64_t count) const;

  std::filesystem::path folder_;
  CalibratedRun run_;
  DType scale_dtype_;
  io::FileDescriptor lock_;
  struct Block {
    uint64_t source, file;  // digests
  };
  std::vector<Block> blocks_;
  uint64_t activations_ = 0;  // digest
};

}  // namespace flute::model
