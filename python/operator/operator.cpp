// The PyTorch operators, on LibTorch's stable ABI: one file serves PyTorch 2.10 and every later version. They take
// nothing but tensors and sizes, so that a graph that holds them means the same in another process.
#include <torch/csrc/stable/library.h>

#include <string>

STABLE_TORCH_LIBRARY(flute, library) {
  // Each multiply twice: `_forward` is the same and has no gradient, which Python registers (_operator.py).
  const auto multiply = [&](const std::string& name, const std::string& arguments) {
    library.def((name + arguments).c_str());
    library.def((name + "_forward" + arguments).c_str());
  };
  // On the CPU, with the tensors of a file: x [..., k] -> [..., n], and its gradient, [..., n] -> [..., k].
  multiply("gemm",
           "(Tensor x, Tensor packed, Tensor scales, Tensor codebook, Tensor? offsets, Tensor? bias, int bits, "
           "int group_size) -> Tensor");
  library.def(
      "gemm_transposed(Tensor y, Tensor packed, Tensor scales, Tensor codebook, Tensor? offsets, int bits, "
      "int group_size) -> Tensor");
  // On a CUDA device, with the buffers that flute_tile fills; `rows`: of each matrix stacked, together n.
  multiply("gemm_tiled",
           "(Tensor x, Tensor codes, Tensor scales, Tensor codebooks, Tensor? bias, int[] rows, int k, int bits, "
           "int group_size) -> Tensor");
  library.def(
      "gemm_tiled_transposed(Tensor y, Tensor codes, Tensor scales, Tensor codebooks, int[] rows, int k, int bits, "
      "int group_size) -> Tensor");
}
