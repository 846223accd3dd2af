#pragma once
#include <cstdint>

namespace flute {

/// Shapes of weight matrices, [n, k], that tests and benchmarks use.
struct MatrixShape {
  int64_t n, k;
};

/// Fit no tile.
constexpr MatrixShape kAwkwardShapes[] = {{384, 384},   {1024, 384}, {384, 1024},  {3072, 256},
                                          {4224, 4160}, {1152, 640}, {11008, 4096}};

/// Llama-3-8B and -70B with layers fused and alone, the 70B's slices for 2 and 4 devices, Gemma-2-9B and -27B.
constexpr MatrixShape kModelShapes[] = {
    {6144, 4096},  {4096, 4096},  {28672, 4096}, {4096, 14336}, {1024, 4096}, {14336, 4096}, {10240, 8192},
    {8192, 8192},  {57344, 8192}, {8192, 28672}, {5120, 8192},  {8192, 4096}, {28672, 8192}, {8192, 14336},
    {2560, 8192},  {14336, 8192}, {8192, 2048},  {8192, 7168},  {8192, 3584}, {3584, 4096},  {28672, 3584},
    {3584, 14336}, {8192, 4608},  {4608, 4096},  {73728, 4608}, {4608, 36864}};

/// Numbers of tokens: around the kernels' tiles and at the usual powers of two.
constexpr int64_t kTokenCounts[] = {1, 2, 3, 4, 7, 8, 13, 16, 17, 32, 33, 53, 64, 96, 128, 256, 257, 512, 1024, 4096};

}  // namespace flute
