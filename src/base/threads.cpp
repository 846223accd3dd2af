#include "flute/threads.hpp"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/fail.hpp"

#if defined(__linux__)
#include <sched.h>
#endif

namespace flute {
namespace {

int available_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : static_cast<int>(count);
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A decoder calls the pool some hundred times a token with microseconds between calls; a worker that slept at once
// would pay a futex wake-up (~50 us on a virtual machine) each time. 4000 pauses are about 50-150 us.
constexpr int kSpins = 4000;

}  // namespace

struct ThreadPool::Impl {
  std::vector<std::thread> workers;
  std::mutex callers;  // one parallel_for at a time

  std::mutex mutex;  // guards sleeping and the exception
  std::condition_variable wake;
  std::exception_ptr error;

  std::atomic<uint64_t> generation{0};
  std::atomic<bool> stop{false};
  std::atomic<int> running{0};
  std::atomic<int64_t> next{0};
  int64_t count = 0;
  const std::function<void(int64_t)>* body = nullptr;

  void work() {
    for (;;) {
      const int64_t index = next.fetch_add(1, std::memory_order_relaxed);
      if (index >= count) return;
      try {
        (*body)(index);
      } catch (...) {
        next.store(count, std::memory_order_relaxed);
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
      }
    }
  }

  void worker() {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation.load(std::memory_order_acquire) == seen; ++spin) pause();
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
      }
      seen = generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;
      work();
      running.fetch_sub(1, std::memory_order_release);
    }
  }

  void publish() {
    {
      const std::lock_guard lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
  }

  void stop_all() {
    stop.store(true, std::memory_order_release);
    publish();
    for (std::thread& worker : workers) worker.join();
  }
};

ThreadPool::ThreadPool(int count) : impl_(std::make_unique<Impl>()) {
  if (count < 0) fail(ErrorCode::kInvalidArgument, "threads: expected 0 or more, found {}", count);
  if (count == 0) count = available_cpus();
  try {
    for (int i = 1; i < count; ++i) impl_->workers.emplace_back([impl = impl_.get()] { impl->worker(); });
  } catch (const std::exception& error) {
    const int started = size();
    impl_->stop_all();
    fail(ErrorCode::kInvalidArgument, "threads: expected to start {}, the system gave {}: {}", count, started,
         error.what());
  }
}

ThreadPool::~ThreadPool() { impl_->stop_all(); }

int ThreadPool::size() const { return static_cast<int>(impl_->workers.size()) + 1; }

void ThreadPool::parallel_for(int64_t count, const std::function<void(int64_t)>& body) {
  if (count <= 0) return;
  const std::lock_guard caller(impl_->callers);
  impl_->count = count;
  impl_->body = &body;
  impl_->error = nullptr;
  impl_->next.store(0, std::memory_order_relaxed);
  const bool alone = impl_->workers.empty() || count == 1;
  if (!alone) {
    impl_->running.store(static_cast<int>(impl_->workers.size()), std::memory_order_relaxed);
    impl_->publish();
  }
  impl_->work();
  if (!alone) {
    // Workers may be descheduled by a busy machine: after a while give the core away instead of burning it.
    for (int spin = 0; impl_->running.load(std::memory_order_acquire) != 0; ++spin) {
      if (spin < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
  if (impl_->error) std::rethrow_exception(std::exchange(impl_->error, nullptr));
}

void parallel_for(ThreadPool* pool, int64_t count, const std::function<void(int64_t)>& body) {
  if (pool != nullptr) {
    pool->parallel_for(count, body);
  } else {
    for (int64_t i = 0; i < count; ++i) body(i);
  }
}

}  // namespace flute
