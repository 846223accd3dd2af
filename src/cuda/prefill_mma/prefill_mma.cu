#include "cuda/prefill_mma/prefill_mma.hpp"

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

cudaError_t prepare_prefill_mma_kernel(PrefillMmaKernel kernel, const DeviceLimits& device) {
  const auto function = reinterpret_cast<const void*>(kernel);
  const cudaError_t error =
      cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_per_block);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

cudaError_t launch_prefill_mma(PrefillMmaKernel kernel, const PrefillMmaArguments& arguments, cudaStream_t stream) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(arguments.plan.blocks());
  config.blockDim = static_cast<unsigned>(32 * arguments.plan.shape.warps());
  config.dynamicSmemBytes = static_cast<size_t>(arguments.plan.shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = arguments.dependent_launch ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

}  // namespace flute::cuda
