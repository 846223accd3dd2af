#include "cuda/prefill_mma/prefill_mma.hpp"

#include "cuda/launch.hpp"
#include "cuda/prefill_mma/instances.hpp"

namespace flute::cuda {

PrefillMmaKernel find_prefill_mma_kernel(int tile, const Format& format) {
  if (tile < 0 || tile >= kPrefillMmaTileCount) return nullptr;
  const int rows = kPrefillMmaTiles[tile].rows, row_warps = kPrefillMmaTiles[tile].row_warps;
  const int groups = groups_of_unit(format.group_size);
  if (format.bits == 4) return (format.bf16 ? prefill_mma_bf16_4 : prefill_mma_fp16_4)(rows, row_warps, groups);
  if (format.bits == 3) return (format.bf16 ? prefill_mma_bf16_3 : prefill_mma_fp16_3)(rows, row_warps, groups);
  if (format.bits == 2) return (format.bf16 ? prefill_mma_bf16_2 : prefill_mma_fp16_2)(rows, row_warps, groups);
  return nullptr;
}

cudaError_t launch_prefill_mma(PrefillMmaKernel kernel, const PrefillMmaArguments& arguments, cudaStream_t stream) {
  return launch_kernel(kernel, arguments, arguments.plan.blocks(), arguments.plan.shape.warps(), stream);
}

}  // namespace flute::cuda
