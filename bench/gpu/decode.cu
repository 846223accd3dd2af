// The instantiations of the decode kernel, one line each, and their launch.
#include <type_traits>

#include "decode_wide.cuh"
#include "launch.hpp"

namespace flute::cuda {
namespace {

using Kernel = void (*)(DecodeArguments, DecodeMaps);

struct Entry {
  Dtype dtype;
  int bits, tiles_m, warps, permutes;
  bool group32;
  int wide;  // 0: decode.cuh; else kDepth of decode_wide.cuh
  bool pair;
  Kernel kernel;
};

template <typename T, int kBits, int kTilesM, int kWarps, bool kGroup32 = false, int kPermutes = 0>
constexpr Entry entry() {
  return {std::is_same_v<T, __half> ? Dtype::kHalf : Dtype::kBfloat16,
          kBits,
          kTilesM,
          kWarps,
          kPermutes,
          kGroup32,
          0,
          false,
          decode_kernel<T, kBits, kTilesM, kWarps, kGroup32, kPermutes>};
}

template <typename T, int kBits, int kTilesM, int kDepth = 2, bool kPair = false, bool kGroup32 = false>
constexpr Entry wide() {
  return {std::is_same_v<T, __half> ? Dtype::kHalf : Dtype::kBfloat16,   kBits, kTilesM, 16, 0, kGroup32, kDepth, kPair,
          decode_wide_kernel<T, kBits, kTilesM, kDepth, kPair, kGroup32>};
}

const Entry kEntries[] = {
    entry<__half, 4, 1, 16>(),
    entry<__half, 4, 1, 8>(),
    entry<__half, 3, 1, 8>(),
    entry<__half, 2, 1, 8>(),
    entry<__half, 4, 2, 16>(),
    entry<__half, 3, 1, 16>(),
    entry<__half, 3, 2, 16>(),
    entry<__half, 2, 1, 16>(),
    entry<__half, 2, 1, 16, false, 1>(),
    entry<__half, 2, 1, 16, false, 2>(),
    entry<__half, 2, 2, 16>(),
    entry<__half, 4, 1, 16, true>(),
    wide<__half, 4, 4, 2, false, false>(),
    wide<__half, 4, 4, 2, true, false>(),
    wide<__half, 4, 8, 2, false, false>(),
    wide<__half, 4, 8, 2, true, false>(),
    wide<__half, 3, 4, 2, false, false>(),
    wide<__half, 3, 4, 2, true, false>(),
    wide<__half, 3, 8, 2, false, false>(),
    wide<__half, 3, 8, 2, true, false>(),
    wide<__half, 4, 4, 1, false, false>(),
    wide<__half, 4, 4, 1, true, false>(),
    wide<__half, 3, 4, 1, false, false>(),
    wide<__half, 3, 4, 1, true, false>(),
    wide<__half, 2, 4, 1, false, false>(),
    wide<__half, 2, 4, 1, true, false>(),
    wide<__half, 2, 4, 1, false, true>(),
    wide<__half, 2, 4, 1, true, true>(),
    wide<__nv_bfloat16, 4, 4, 1, false, false>(),
    wide<__nv_bfloat16, 4, 4, 1, true, false>(),
    wide<__half, 4, 8, 1, false, false>(),
    wide<__half, 4, 8, 1, true, false>(),
    wide<__half, 3, 8, 1, false, false>(),
    wide<__half, 3, 8, 1, true, false>(),
    wide<__half, 2, 8, 1, false, false>(),
    wide<__half, 2, 8, 1, true, false>(),
    wide<__half, 2, 4, 2, false, false>(),
    wide<__half, 2, 4, 2, true, false>(),
    wide<__half, 2, 8, 2, false, false>(),
    wide<__half, 2, 8, 2, true, false>(),
    wide<__half, 2, 4, 2, false, true>(),
    wide<__half, 2, 4, 2, true, true>(),
    wide<__nv_bfloat16, 4, 4, 2, false, false>(),
    wide<__nv_bfloat16, 4, 4, 2, true, false>(),
    entry<__nv_bfloat16, 4, 1, 16>(),
    entry<__nv_bfloat16, 4, 1, 8>(),
    entry<__nv_bfloat16, 3, 2, 16, true>(),
};

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's entry point without linking the driver; null where it has none.
Encode encoder() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  return encode;
}

// A map of up to three dimensions, fastest first; strides in bytes, of the second dimension on.
struct Box {
  uint64_t size[3], stride[2];
  uint32_t box[3];
  int dimensions;
};

bool encode_map(CUtensorMap* map, CUtensorMapDataType type, const void* data, const Box& b, bool swizzled) {
  const uint32_t steps[3] = {1, 1, 1};
  return encoder() != nullptr &&
         encoder()(map, type, static_cast<uint32_t>(b.dimensions), const_cast<void*>(data), b.size, b.stride, b.box,
                   steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                   swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool make_maps(const DecodeArguments& args, int bits, DecodeMaps* maps) {
  const DecodePlan& plan = args.plan;
  const auto units = static_cast<uint64_t>(plan.units), row_groups = static_cast<uint64_t>(plan.row_groups);
  const auto warps = static_cast<uint32_t>(plan.warps), m = static_cast<uint32_t>(args.m);
  const auto unit = static_cast<uint32_t>(unit_bytes(bits));
  const uint64_t scale_row = static_cast<uint64_t>(args.groups) * kScaleBytes;
  bool good = true;
  if (plan.wide) {
    const auto step = static_cast<uint32_t>(plan.step_units);
    const auto scale_words = static_cast<uint32_t>(plan.scale_pitch) / 4;
    const auto scale_rows = static_cast<uint32_t>(plan.scale_box / plan.scale_pitch);
    for (uint32_t i = 0; i < kMaxPassRows; ++i) {
      good = good &&
             encode_map(&maps->codes[i], CU_TENSOR_MAP_DATA_TYPE_INT32, args.codes,
                        {{unit / 4, units, row_groups}, {unit, units * unit}, {unit / 4, step, 1u << i}, 3}, false);
    }
    return good &&
           encode_map(&maps->scales[0], CU_TENSOR_MAP_DATA_TYPE_INT32, args.scales,
                      {{scale_row / 4, row_groups, 1}, {scale_row, 0}, {scale_words, scale_rows, 1}, 2}, false) &&
           encode_map(&maps->x, CU_TENSOR_MAP_DATA_TYPE_UINT16, args.x,
                      {{static_cast<uint64_t>(args.k), m, 1},
                       {static_cast<uint64_t>(args.k) * 2, 0},
                       {kUnitK, static_cast<uint32_t>(8 * plan.tiles_m), 1},
                       2},
                      true);
  }
  for (uint32_t rows = 1; rows <= kMaxPassRows; ++rows) {
    good = good && encode_map(&maps->codes[rows - 1], CU_TENSOR_MAP_DATA_TYPE_INT32, args.codes,
                              {{unit / 4, units, row_groups}, {unit, units * unit}, {unit / 4, warps, rows}, 3}, false);
    good =
        good &&
        encode_map(
            &maps->scales[rows - 1], CU_TENSOR_MAP_DATA_TYPE_INT32, args.scales,
            {{scale_row / 4, row_groups, 1}, {scale_row, 0}, {static_cast<uint32_t>(plan.scale_pitch) / 4, rows, 1}, 2},
            false);
  }
  return good &&
         encode_map(&maps->x, CU_TENSOR_MAP_DATA_TYPE_UINT16, args.x,
                    {{kUnitK, m, units}, {static_cast<uint64_t>(args.k) * 2, kUnitK * 2}, {kUnitK, m, warps}, 3}, true);
}

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
    if (e.dtype != dtype || e.bits != bits || e.tiles_m != args.plan.tiles_m ||
        e.wide != (args.plan.wide ? args.plan.depth : 0) || e.warps != args.plan.warps || e.permutes != permutes)
      continue;
    if (e.group32 != (args.group == 32) || (e.wide != 0 && e.pair != (args.plan.split > 1))) continue;
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};
    config.gridDim = args.plan.clusters * args.plan.split;
    config.blockDim = e.wide != 0 ? kWideThreads : 32 * (args.plan.warps + kOtherWarps);
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
    DecodeMaps maps = {};
    if (!make_maps(args, bits, &maps)) return cudaErrorInvalidValue;
    return cudaLaunchKernelEx(&config, e.kernel, args, maps);
  }
  return cudaErrorInvalidDeviceFunction;
}

}  // namespace flute::cuda
