#include "cuda/prefill/prefill.hpp"

#include <cuda.h>

#include "cuda/prefill/instances.hpp"

namespace flute::cuda {

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, without linking the driver.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
}

Encode encode() {
  static const Encode function = find_encode();
  return function;
}

}  // namespace

PrefillKernel find_prefill_kernel(int tile, const Format& format) {
  const int groups = groups_of_unit(format.group_size);
  if (format.bits == 4) return (format.bf16 ? prefill_bf16_4 : prefill_fp16_4)(tile, groups);
  if (format.bits == 3) return (format.bf16 ? prefill_bf16_3 : prefill_fp16_3)(tile, groups);
  if (format.bits == 2) return (format.bf16 ? prefill_bf16_2 : prefill_fp16_2)(tile, groups);
  return nullptr;
}

cudaError_t prepare_prefill_kernel(PrefillKernel kernel, const DeviceLimits& device) {
  if (encode() == nullptr) return cudaErrorNotSupported;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              device.shared_per_block);
}

cudaError_t count_resident_clusters(DeviceLimits& limits) {
  const PrefillKernel kernel = find_prefill_kernel(0, {});
  if (const cudaError_t error = prepare_prefill_kernel(kernel, limits); error != cudaSuccess) return error;
  for (unsigned blocks = 2; blocks <= kMostSplit; ++blocks) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {blocks, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = static_cast<unsigned>(kPrefillTiles[0].threads());
    config.dynamicSmemBytes = static_cast<size_t>(limits.shared_per_block);
    config.attrs = &attribute;
    config.numAttrs = 1;
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&limits.clusters[blocks - 2], kernel, &config);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t launch_prefill(PrefillKernel kernel, const PrefillArguments& arguments, cudaStream_t stream) {
  const PrefillPlan& plan = arguments.plan;
  TensorMap x_map = {};
  const uint64_t size[2] = {static_cast<uint64_t>(arguments.k), static_cast<uint64_t>(arguments.m)};
  const uint64_t stride[1] = {static_cast<uint64_t>(arguments.ldx) * 2};
  const uint32_t box[2] = {kUnitK, static_cast<uint32_t>(plan.shape().tokens)}, steps[2] = {1, 1};
  const CUresult result =
      encode()(reinterpret_cast<CUtensorMap*>(x_map.bytes), CU_TENSOR_MAP_DATA_TYPE_UINT16, 2,
               const_cast<uint8_t*>(arguments.x), size, stride, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return cudaErrorInvalidValue;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(plan.split), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(plan.clusters * plan.split);
  config.blockDim = static_cast<unsigned>(plan.shape().threads());
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = arguments.dependent_launch ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, arguments, x_map);
}

}  // namespace flute::cuda
