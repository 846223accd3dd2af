// A device of one multiprocessor, emulated: it runs the kernels' sources as C++, thread by thread, and stops at what a
// real one leaves undefined. cuda_runtime.h and cuda/ptx/ptx.cuh in this folder are the language that kernels see.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace flute::emulation {

/// When an asynchronous copy happens. Either shows what the other hides: a stage that is filled while somebody still
/// reads it, or read before it is filled.
enum class Copies { kAtOnce, kWhenAwaited };

/// Memory that kernels may read by asynchronous copies.
struct Readable {
  const void* data;
  size_t bytes;
};

struct Launch {
  int blocks = 1, threads = 32;
  uint32_t shared_begin = 0;  ///< the address of the block's own shared memory: 1024 from compute capability 9.0 on
  int shared_bytes = 0;
  Copies copies = Copies::kAtOnce;
  bool backwards = false;  ///< the last block runs first, and of threads that could all go on the last one goes on
  std::vector<Readable> readable;
};

/// Runs `kernel` in every thread of every block. Shared memory is NaN at the start of a block. Throws
/// std::runtime_error, with the thread and the kernel's line, where threads wait for each other forever, where those of
/// a warp stand at different collective instructions, or where an access is outside its memory, misaligned, or of bytes
/// that are still on their way.
void run(const Launch& launch, const std::function<void()>& kernel);

// --- What instructions are made of; `what` and `line` name one. ---

[[noreturn]] void stop(const std::string& why);

uint32_t shared_begin();
/// Shared memory to read or to write, checked.
const void* shared_in(uint32_t address, uint32_t bytes, const char* what, int line);
void* shared_out(uint32_t address, uint32_t bytes, const char* what, int line);

void copy_16(uint32_t shared, const void* global, uint32_t valid, int line);
void copy_commit();
void copy_wait(size_t pending);

/// Waits until `count` threads stand at barrier `id`, those of one instruction.
void block_barrier(int id, int count, const char* what, int line);

constexpr int kLanes = 32;
using Lanes = void* const (&)[kLanes];  ///< what each lane brought
/// All lanes of a warp meet, and `execute` sees what they brought.
void warp_collective(void* mine, void (*execute)(Lanes), const char* what, int line);

}  // namespace flute::emulation
