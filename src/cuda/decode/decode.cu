#include "cuda/decode/decode.hpp"

#include "cuda/decode/instances.hpp"

namespace flute::cuda {

DecodeKernel find_decode_kernel(const DecodePlan& plan, const Format& format) {
  const int groups = groups_of_unit(format.group_size);
  if (!plan.valid) return nullptr;
  if (format.bits == 4)
    return (format.bf16 ? decode_bf16_4 : decode_fp16_4)(plan.tiles_m, plan.rows, plan.depth, groups);
  if (format.bits == 3)
    return (format.bf16 ? decode_bf16_3 : decode_fp16_3)(plan.tiles_m, plan.rows, plan.depth, groups);
  if (format.bits == 2)
    return (format.bf16 ? decode_bf16_2 : decode_fp16_2)(plan.tiles_m, plan.rows, plan.depth, groups);
  return nullptr;
}

cudaError_t prepare_decode_kernel(DecodeKernel kernel, const DeviceLimits& device) {
  const auto function = reinterpret_cast<const void*>(kernel);
  const cudaError_t error =
      cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_per_block);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

cudaError_t launch_decode(DecodeKernel kernel, const DecodeArguments& arguments, cudaStream_t stream) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(arguments.plan.deal.blocks);
  config.blockDim = static_cast<unsigned>(32 * arguments.plan.warps());
  config.dynamicSmemBytes = static_cast<size_t>(arguments.plan.shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = arguments.dependent_launch ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

}  // namespace flute::cuda
