#include "cuda/upload.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <thread>

#include "cuda/device.hpp"

namespace flute::cuda {
namespace {

// Pieces are small enough that the device soon has its first, and large enough that starting a copy is nothing to them.
constexpr size_t kPieceBytes = size_t{4} << 20;
// Below, the driver's copy takes no longer than starting threads.
constexpr size_t kLeastBytes = size_t{1} << 20;
constexpr size_t kLanes = 4;
constexpr size_t kPiecesOfLane = 2;  // one is filled while the other is on its way

}  // namespace

struct Upload::Pinned {
  std::byte* memory = nullptr;  ///< null where the system gave none
  std::array<cudaEvent_t, kLanes* kPiecesOfLane> sent = {};

  Pinned() {
    void* data = nullptr;
    if (cudaHostAlloc(&data, sent.size() * kPieceBytes, cudaHostAllocDefault) != cudaSuccess) {
      (void)cudaGetLastError();
      return;
    }
    for (cudaEvent_t& event : sent) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "upload");
    memory = static_cast<std::byte*>(data);
  }
};

/// Of the device, or null.
Upload::Pinned* Upload::pinned() {
  static std::mutex mutex;
  static auto& devices = *new std::map<int, Pinned>;  // never destroyed: CUDA may be gone by then
  if (!lock_.owns_lock()) lock_ = std::unique_lock(mutex);
  Pinned& found = devices.try_emplace(index_).first->second;
  return found.memory == nullptr ? nullptr : &found;
}

void Upload::copy(void* to, const void* from, size_t bytes) {
  Pinned* const through = bytes < kLeastBytes ? nullptr : pinned();
  if (through == nullptr) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "upload");
    return;
  }
  if (!threads_) {
    const unsigned processors = std::thread::hardware_concurrency();
    threads_.emplace(static_cast<int>(std::clamp<size_t>(processors, 1, kLanes)));
  }
  threads_->parallel_for(kLanes, [&](int64_t lane) {
    const DeviceScope scope(index_);  // a thread's own
    size_t turn = 0;
    for (size_t begin = static_cast<size_t>(lane) * kPieceBytes; begin < bytes; begin += kLanes * kPieceBytes, ++turn) {
      const size_t slot = static_cast<size_t>(lane) * kPiecesOfLane + turn % kPiecesOfLane;
      std::byte* const piece = through->memory + slot * kPieceBytes;
      const size_t size = std::min(kPieceBytes, bytes - begin);
      check(cudaEventSynchronize(through->sent[slot]), "upload");
      std::memcpy(piece, static_cast<const std::byte*>(from) + begin, size);
      check(cudaMemcpyAsync(static_cast<std::byte*>(to) + begin, piece, size, cudaMemcpyHostToDevice, stream_),
            "upload");
      check(cudaEventRecord(through->sent[slot], stream_), "upload");
    }
  });
}

}  // namespace flute::cuda
