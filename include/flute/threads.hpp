#pragma once
#include <cstdint>
#include <functional>
#include <memory>

namespace flute {

/// A fixed set of worker threads. One parallel_for at a time per pool: callers on other threads wait their turn, and a
/// body must not call parallel_for on its own pool.
class ThreadPool {
 public:
  /// `count` threads including the caller's; 0: as many as the machine offers this process. Throws kInvalidArgument
  /// when count is negative or more than the system starts.
  explicit ThreadPool(int count = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  /// Calls `body(index)` for every index in [0, count), in any order, on any of the threads; returns when all are done.
  /// The first exception thrown by a body is rethrown here.
  void parallel_for(int64_t count, const std::function<void(int64_t)>& body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Runs on `pool`, or on the calling thread where `pool` is null.
void parallel_for(ThreadPool* pool, int64_t count, const std::function<void(int64_t)>& body);

}  // namespace flute
