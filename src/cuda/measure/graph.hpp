#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/measure/times.hpp"

namespace flute::cuda {

/// `count` launches, launch(0) .. launch(count - 1) on `stream`, captured in a graph.
class Graph {
 public:
  template <typename Launch>
  Graph(cudaStream_t stream, int count, const Launch& launch) : stream_(stream), count_(count) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "measuring");
    for (int i = 0; i < count; ++i) launch(i);
    check(cudaStreamEndCapture(stream, &graph_), "measuring");
    check(cudaGraphInstantiate(&exec_, graph_, 0), "measuring");
    check(cudaEventCreate(&begin_), "measuring");
    check(cudaEventCreate(&end_), "measuring");
  }
  ~Graph() {
    (void)cudaEventDestroy(begin_);
    (void)cudaEventDestroy(end_);
    (void)cudaGraphExecDestroy(exec_);
    (void)cudaGraphDestroy(graph_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Replays it `times` times; seconds of one launch.
  double replay(int times = 1) const {
    check(cudaEventRecord(begin_, stream_), "measuring");
    for (int i = 0; i < times; ++i) check(cudaGraphLaunch(exec_, stream_), "measuring");
    check(cudaEventRecord(end_, stream_), "measuring");
    check(cudaEventSynchronize(end_), "measuring");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "measuring");
    return 1e-3 * static_cast<double>(milliseconds) / count_ / times;
  }

  /// Of a card that does nothing else: seconds of one launch over 0.2 s, after 0.3 s of the same.
  double sustained() const {
    constexpr double kWarmUp = 0.3, kTimed = 0.2;
    const double seconds = replay() * count_;
    const auto replays = [&](double of) { return std::max(1, static_cast<int>(std::ceil(of / seconds))); };
    (void)replay(replays(kWarmUp));
    return replay(replays(kTimed));
  }

 private:
  cudaStream_t stream_;
  int count_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

/// Times of graphs that are replayed by turns, so that whatever lowers the card's clock lowers it for all of them.
inline std::vector<Times> time_by_turns(const std::vector<const Graph*>& graphs) {
  constexpr int kWarmUp = 3, kRepetitions = 9;
  std::vector<std::vector<double>> seconds(graphs.size());
  for (int i = 0; i < kWarmUp + kRepetitions; ++i) {
    for (size_t g = 0; g < graphs.size(); ++g) {
      const double one = graphs[g]->replay();
      if (i >= kWarmUp) seconds[g].push_back(one);
    }
  }
  std::vector<Times> times;
  for (std::vector<double>& of_one : seconds) {
    std::sort(of_one.begin(), of_one.end());
    times.push_back({of_one[of_one.size() / 2], of_one.front(), of_one.back()});
  }
  return times;
}

/// Captures `count` launches and times them alone.
template <typename Launch>
Times time_graph(cudaStream_t stream, int count, const Launch& launch) {
  const Graph graph(stream, count, launch);
  return time_by_turns({&graph}).front();
}

}  // namespace flute::cuda
