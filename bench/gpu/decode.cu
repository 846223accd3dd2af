// The instantiations of the decode kernel, one line each, and their launch.
#include <type_traits>

#include "decode.cuh"
#include "launch.hpp"

namespace flute::cuda {
namespace {

using Kernel = void (*)(DecodeArguments);

struct Entry {
  Dtype dtype;
  int bits, tiles_m, warps, permutes;
  bool group32;
  Kernel kernel;
};

template <typename T, int kBits, int kTilesM, int kWarps, bool kGroup32 = false, int kPermutes = 0>
constexpr Entry entry() {
  return {std::is_same_v<T, __half> ? Dtype::kHalf : Dtype::kBfloat16,  kBits, kTilesM, kWarps, kPermutes, kGroup32,
          decode_kernel<T, kBits, kTilesM, kWarps, kGroup32, kPermutes>};
}

const Entry kEntries[] = {
    entry<__half, 4, 1, 16>(),
    entry<__half, 4, 1, 8>(),
    entry<__half, 3, 1, 8>(),
    entry<__half, 2, 1, 8>(),
    entry<__half, 4, 2, 16>(),
    entry<__half, 4, 4, 8>(),
    entry<__half, 4, 8, 8>(),
    entry<__half, 3, 1, 16>(),
    entry<__half, 3, 2, 16>(),
    entry<__half, 3, 4, 8>(),
    entry<__half, 3, 8, 8>(),
    entry<__half, 2, 1, 16>(),
    entry<__half, 2, 1, 16, false, 1>(),
    entry<__half, 2, 1, 16, false, 2>(),
    entry<__half, 2, 2, 16>(),
    entry<__half, 2, 4, 8>(),
    entry<__half, 2, 8, 8>(),
    entry<__half, 4, 1, 16, true>(),
    entry<__half, 2, 4, 8, true>(),
    entry<__nv_bfloat16, 4, 1, 16>(),
    entry<__nv_bfloat16, 4, 1, 8>(),
    entry<__nv_bfloat16, 3, 2, 16, true>(),
};

}  // namespace

cudaError_t prepare_decode_kernels() {
  for (const Entry& e : kEntries) {
    const auto function = reinterpret_cast<const void*>(e.kernel);
    cudaError_t error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, DeviceLimits{}.shared_per_block);
    if (error != cudaSuccess) return error;
    error =
        cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

DeviceLimits query_device() {
  DeviceLimits limits;
  cudaDeviceGetAttribute(&limits.sm_count, cudaDevAttrMultiProcessorCount, 0);
  limits.clusters[0] = limits.sm_count;
  for (int shift = 1; shift < 4; ++shift) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {1u << shift, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = 8 * limits.sm_count;
    config.blockDim = 32 * (kEntries[0].warps + kOtherWarps);
    config.dynamicSmemBytes = limits.shared_per_block;
    config.attrs = &attribute, config.numAttrs = 1;
    cudaOccupancyMaxActiveClusters(&limits.clusters[shift], kEntries[0].kernel, &config);
  }
  return limits;
}

cudaError_t launch_decode(const DecodeArguments& args, Dtype dtype, int bits, int permutes, cudaStream_t stream) {
  if (permutes < 0) permutes = 0;
  for (const Entry& e : kEntries) {
    if (e.dtype != dtype || e.bits != bits || e.tiles_m != args.plan.tiles_m || e.warps != args.plan.warps ||
        e.permutes != permutes)
      continue;
    if (e.group32 != (args.group == 32)) continue;
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};
    config.gridDim = args.plan.clusters * args.plan.split;
    config.blockDim = 32 * (args.plan.warps + kOtherWarps);
    config.dynamicSmemBytes = args.plan.shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    if (args.plan.split > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim = {static_cast<unsigned>(args.plan.split), 1, 1};
      ++config.numAttrs;
    }
    if (args.dependent_launch) {
      attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[config.numAttrs].val.programmaticStreamSerializationAllowed = 1;
      ++config.numAttrs;
    }
    return cudaLaunchKernelEx(&config, e.kernel, args);
  }
  return cudaErrorInvalidDeviceFunction;
}

}  // namespace flute::cuda
