#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/measure/times.hpp"

namespace flute::cuda {

/// Captures `count` launches, launch(0) .. launch(count - 1) on `stream`, in a graph and replays it.
template <typename Launch>
Times time_graph(cudaStream_t stream, int count, const Launch& launch) {
  constexpr int kWarmUp = 3, kRepetitions = 9;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "measuring");
  for (int i = 0; i < count; ++i) launch(i);
  check(cudaStreamEndCapture(stream, &graph), "measuring");
  check(cudaGraphInstantiate(&exec, graph, 0), "measuring");
  check(cudaEventCreate(&begin), "measuring");
  check(cudaEventCreate(&end), "measuring");
  std::vector<double> times;
  for (int i = 0; i < kWarmUp + kRepetitions; ++i) {
    check(cudaEventRecord(begin, stream), "measuring");
    check(cudaGraphLaunch(exec, stream), "measuring");
    check(cudaEventRecord(end, stream), "measuring");
    check(cudaEventSynchronize(end), "measuring");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "measuring");
    if (i >= kWarmUp) times.push_back(1e-3 * static_cast<double>(milliseconds) / count);
  }
  check(cudaEventDestroy(begin), "measuring");
  check(cudaEventDestroy(end), "measuring");
  check(cudaGraphExecDestroy(exec), "measuring");
  check(cudaGraphDestroy(graph), "measuring");
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back()};
}

}  // namespace flute::cuda
