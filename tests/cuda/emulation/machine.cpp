#include "cuda/emulation/machine.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <stdexcept>
#include <utility>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#define FLUTE_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FLUTE_ASAN
#endif
#endif
#ifdef FLUTE_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace flute::cuda {
constexpr size_t kSharedMemory = 228 * 1024;
alignas(1024) uint8_t shared_memory[kSharedMemory];
}  // namespace flute::cuda

// Leaves one stack, whose pointer goes to *from, for another. What a call must preserve is on the stack.
extern "C" void flute_switch_stacks(void** from, void* to);
asm(R"(
.text
.globl flute_switch_stacks
.type flute_switch_stacks, @function
flute_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size flute_switch_stacks, .-flute_switch_stacks
)");

namespace flute::emulation {
namespace {

using cuda::shared_memory;

constexpr size_t kStackBytes = 256 * 1024;
constexpr uint32_t kPiece = 16;
constexpr uint8_t kNothing = 0xff;  // what memory holds that nobody has written: NaN

/// A place where threads meet. Who comes last goes on at once, the others when they are called again.
struct Meeting {
  int arrived = 0;
  uint64_t round = 0;
  const char* what = nullptr;
  int line = 0;
};

struct Copy {
  uint32_t to;
  const void* from;
  uint32_t valid;
};

struct Thread {
  void* stack_pointer = nullptr;
  const Meeting* waits_for = nullptr;
  uint64_t round = 0;
  bool done = false;
  std::vector<Copy> issued;
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  Meeting meeting;
  void* brought[kLanes];
};

class Stacks {
 public:
  static constexpr int kCount = 1024;
  Stacks()
      : memory_(mmap(nullptr, kCount * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                     -1, 0)) {
    if (memory_ == MAP_FAILED) throw std::runtime_error("no memory for stacks");
  }
  std::byte* at(int index) const { return static_cast<std::byte*>(memory_) + static_cast<size_t>(index) * kStackBytes; }

 private:
  void* memory_;
};

struct Block {
  const Launch* launch = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Meeting barriers[16];
  std::vector<uint8_t> on_its_way;  // of each piece of shared memory
  int current = 0;
  void* scheduler = nullptr;
  std::exception_ptr error;
  const void* main_stack = nullptr;  // for the address sanitizer
  size_t main_bytes = 0;
};

Block* block = nullptr;

const Stacks& stacks() {
  static const Stacks all;
  return all;
}

std::string place(const char* what, int line) { return std::string(what) + " in line " + std::to_string(line); }

void to_scheduler([[maybe_unused]] bool for_good) {
#ifdef FLUTE_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, block->main_stack, block->main_bytes);
#endif
  flute_switch_stacks(&block->threads[static_cast<size_t>(block->current)].stack_pointer, block->scheduler);
#ifdef FLUTE_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void thread_main() {
#ifdef FLUTE_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &block->main_stack, &block->main_bytes);
#endif
  Thread& thread = block->threads[static_cast<size_t>(block->current)];
  try {
    (*block->kernel)();
    for (const std::vector<Copy>& group : thread.groups) {
      if (!group.empty()) stop("ends before its copies have");
    }
    if (!thread.issued.empty()) stop("ends before its copies have");
  } catch (...) {
    block->error = std::current_exception();
  }
  thread.done = true;
  to_scheduler(true);
}

void resume(int index) {
  block->current = index;
  threadIdx = {static_cast<uint32_t>(index), 0, 0};
#ifdef FLUTE_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stacks().at(index), kStackBytes);
#endif
  flute_switch_stacks(&block->scheduler, block->threads[static_cast<size_t>(index)].stack_pointer);
#ifdef FLUTE_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  if (block->error) std::rethrow_exception(std::exchange(block->error, nullptr));
}

void prepare(int index) {
  std::byte* const begin = stacks().at(index);
#ifdef FLUTE_ASAN
  __asan_unpoison_memory_region(begin, kStackBytes);  // what an earlier thread left that was stopped
#endif
  // As after a call: the return address, to nowhere, is misaligned by 8.
  void** top = reinterpret_cast<void**>(begin + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&thread_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  block->threads[static_cast<size_t>(index)].stack_pointer = top;
}

bool waits(const Thread& thread) { return thread.waits_for != nullptr && thread.waits_for->round == thread.round; }

/// Lets the threads of a warp go on as far as they can; returns whether any did.
bool run_warp(int warp) {
  bool any = false;
  for (bool again = true; again; any = any || again) {
    again = false;
    for (int i = 0; i < kLanes; ++i) {
      const int index = warp * kLanes + (block->launch->backwards ? kLanes - 1 - i : i);
      const Thread& thread = block->threads[static_cast<size_t>(index)];
      if (thread.done || waits(thread)) continue;
      resume(index);
      again = true;
    }
  }
  return any;
}

void run_block() {
  const int warps = static_cast<int>(block->warps.size());
  for (bool any = true; any;) {
    any = false;
    for (int i = 0; i < warps; ++i) any = run_warp(block->launch->backwards ? warps - 1 - i : i) || any;
  }
  for (size_t i = 0; i < block->threads.size(); ++i) {
    const Thread& thread = block->threads[i];
    if (thread.done) continue;
    throw std::runtime_error("block " + std::to_string(blockIdx.x) + ", thread " + std::to_string(i) +
                             " waits forever: " + place(thread.waits_for->what, thread.waits_for->line) + ", where " +
                             std::to_string(thread.waits_for->arrived) + " threads stand");
  }
}

template <typename Last>
void meet(Meeting& meeting, int count, const char* what, int line, const Last& last) {
  if (meeting.arrived > 0 && (meeting.what != what || meeting.line != line)) {
    stop("stands at " + place(what, line) + ", others at " + place(meeting.what, meeting.line));
  }
  meeting.what = what, meeting.line = line;
  if (++meeting.arrived == count) {
    last();
    meeting.arrived = 0;
    ++meeting.round;
    return;
  }
  Thread& thread = block->threads[static_cast<size_t>(block->current)];
  thread.waits_for = &meeting, thread.round = meeting.round;
  to_scheduler(false);
}

void check_place(uint32_t address, uint32_t bytes, const char* what, int line) {
  const uint32_t begin = block->launch->shared_begin, size = static_cast<uint32_t>(block->launch->shared_bytes);
  if (address % bytes != 0) stop(place(what, line) + ": misaligned address " + std::to_string(address));
  if (address < begin || address - begin + bytes > size) {
    stop(place(what, line) + ": address " + std::to_string(address) + " outside of the block's " +
         std::to_string(size) + " bytes from " + std::to_string(begin));
  }
}

uint8_t& on_its_way(uint32_t address) { return block->on_its_way[(address - block->launch->shared_begin) / kPiece]; }
uint8_t* shared(uint32_t address) { return shared_memory + (address - block->launch->shared_begin); }

void carry_out(const Copy& copy) {
  std::memset(shared(copy.to), 0, kPiece);
  std::memcpy(shared(copy.to), copy.from, copy.valid);
}

}  // namespace

void stop(const std::string& why) {
  throw std::runtime_error("block " + std::to_string(blockIdx.x) + ", thread " + std::to_string(threadIdx.x) + ": " +
                           why);
}

uint32_t shared_begin() { return block->launch->shared_begin; }

const void* shared_in(uint32_t address, uint32_t bytes, const char* what, int line) {
  check_place(address, bytes, what, line);
  if (on_its_way(address) != 0) stop(place(what, line) + ": reads what a copy is still to bring");
  return shared(address);
}

void* shared_out(uint32_t address, uint32_t bytes, const char* what, int line) {
  check_place(address, bytes, what, line);
  if (on_its_way(address) != 0) stop(place(what, line) + ": writes where a copy is still to come");
  return shared(address);
}

void copy_16(uint32_t shared_address, const void* global, uint32_t valid, int line) {
  void* const to = shared_out(shared_address, kPiece, "copy_16", line);
  const auto* from = static_cast<const std::byte*>(global);
  if (reinterpret_cast<uintptr_t>(from) % kPiece != 0) stop(place("copy_16", line) + ": misaligned source");
  const auto holds = [&](const Readable& memory) {
    const auto* begin = static_cast<const std::byte*>(memory.data);
    return from >= begin && from + valid <= begin + memory.bytes;
  };
  const std::vector<Readable>& all = block->launch->readable;
  if (valid != 0 && std::none_of(all.begin(), all.end(), holds)) {
    stop(place("copy_16", line) + ": reads outside of every operand");
  }
  const Copy copy{shared_address, global, valid};
  std::memset(to, kNothing, kPiece);
  on_its_way(shared_address) = 1;
  if (block->launch->copies == Copies::kAtOnce) carry_out(copy);
  block->threads[static_cast<size_t>(block->current)].issued.push_back(copy);
}

void copy_commit() {
  Thread& thread = block->threads[static_cast<size_t>(block->current)];
  thread.groups.push_back(std::exchange(thread.issued, {}));
}

void copy_wait(size_t pending) {
  Thread& thread = block->threads[static_cast<size_t>(block->current)];
  for (; thread.groups.size() > pending; thread.groups.pop_front()) {
    for (const Copy& copy : thread.groups.front()) {
      if (block->launch->copies == Copies::kWhenAwaited) carry_out(copy);
      on_its_way(copy.to) = 0;
    }
  }
}

void block_barrier(int id, int count, const char* what, int line) {
  meet(block->barriers[id], count, what, line, [] {});
}

void warp_collective(void* mine, void (*execute)(Lanes), const char* what, int line) {
  Warp& warp = block->warps[static_cast<size_t>(block->current / kLanes)];
  warp.brought[block->current % kLanes] = mine;
  meet(warp.meeting, kLanes, what, line, [&] { execute(warp.brought); });
}

void run(const Launch& launch, const std::function<void()>& kernel) {
  if (launch.threads > Stacks::kCount || launch.threads % kLanes != 0) throw std::runtime_error("threads of a block");
  const auto bytes = static_cast<size_t>(launch.shared_bytes);
  if (bytes > cuda::kSharedMemory || bytes % kPiece != 0) throw std::runtime_error("shared memory of a block");
  blockDim = {static_cast<uint32_t>(launch.threads), 1, 1};
  gridDim = {static_cast<uint32_t>(launch.blocks), 1, 1};
  for (int i = 0; i < launch.blocks; ++i) {
    const int b = launch.backwards ? launch.blocks - 1 - i : i;
    Block one;
    one.launch = &launch, one.kernel = &kernel;
    one.threads.resize(static_cast<size_t>(launch.threads));
    one.warps.resize(static_cast<size_t>(launch.threads / kLanes));
    one.on_its_way.resize(bytes / kPiece);
    block = &one;
    blockIdx = {static_cast<uint32_t>(b), 0, 0};
    std::memset(shared_memory, kNothing, cuda::kSharedMemory);
    for (int thread = 0; thread < launch.threads; ++thread) prepare(thread);
    run_block();
    if (std::any_of(shared_memory + bytes, shared_memory + cuda::kSharedMemory,
                    [](uint8_t v) { return v != kNothing; })) {
      throw std::runtime_error("block " + std::to_string(b) + ": wrote behind its shared memory");
    }
  }
}

}  // namespace flute::emulation
