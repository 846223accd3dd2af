#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "flute/error.hpp"
#include "flute/threads.hpp"

namespace flute {
namespace {

TEST(ThreadPool, CallsEveryIndexOnce) {
  for (const int size : {1, 2, 3, 8}) {
    ThreadPool pool(size);
    EXPECT_EQ(pool.size(), size);
    for (const int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
      pool.parallel_for(count, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
      for (const auto& call : calls) ASSERT_EQ(call, 1) << size << " threads, " << count << " indices";
    }
  }
}

TEST(ThreadPool, NullPoolRunsInOrderOnTheCaller) {
  std::vector<int64_t> order;
  parallel_for(nullptr, 4, [&](int64_t i) { order.push_back(i); });
  EXPECT_EQ(order, (std::vector<int64_t>{0, 1, 2, 3}));
}

// The results of a body are visible to the caller, call after call: a decoder makes hundreds of such calls a token.
TEST(ThreadPool, ManySmallCalls) {
  ThreadPool pool(4);
  std::vector<int64_t> values(4, 0);
  for (int64_t call = 0; call < 5000; ++call) {
    pool.parallel_for(4, [&](int64_t i) { values[static_cast<size_t>(i)] += i; });
  }
  EXPECT_EQ(values, (std::vector<int64_t>{0, 5000, 10000, 15000}));
}

// Workers that went to sleep between calls wake up again.
TEST(ThreadPool, WakesUpAfterAPause) {
  ThreadPool pool(2);
  for (int call = 0; call < 3; ++call) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    // Neither index can end before both run: this hangs unless a second thread takes part.
    std::atomic<int> running{0};
    pool.parallel_for(2, [&](int64_t) {
      ++running;
      while (running < 2) std::this_thread::yield();
    });
    EXPECT_EQ(running, 2);
  }
}

TEST(ThreadPool, RethrowsAndStaysUsable) {
  ThreadPool pool(3);
  for (const int64_t count : {1, 100}) {
    std::atomic<int> calls{0};
    EXPECT_THROW(pool.parallel_for(count,
                                   [&](int64_t) {
                                     ++calls;
                                     throw std::runtime_error("body");
                                   }),
                 std::runtime_error);
    EXPECT_LE(calls, pool.size());  // nobody starts another index after the first failure
    std::atomic<int64_t> sum{0};
    pool.parallel_for(10, [&](int64_t i) { sum += i; });
    EXPECT_EQ(sum, 45);
  }
}

TEST(ThreadPool, CallersOnSeveralThreadsTakeTurns) {
  ThreadPool pool(2);
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int call = 0; call < 200; ++call) pool.parallel_for(5, [&](int64_t i) { sum += i; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum, 4 * 200 * 10);
}

TEST(ThreadPool, RefusesANegativeCount) {
  try {
    ThreadPool pool(-1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "threads: expected 0 or more, found -1");
  }
}

}  // namespace
}  // namespace flute
