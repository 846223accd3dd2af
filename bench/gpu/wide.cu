#include <cuda.h>

#include <algorithm>

#include "wide.cuh"

namespace flute::cuda {

namespace {

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

using WideKernel = void (*)(WideArguments, TensorMap);

template <typename T, int kBits, int kTilesM>
WideKernel with_quads(int quads, int groups) {
  if (quads == 1) return groups == 1 ? wide_kernel<T, kBits, kTilesM, 1, 1> : wide_kernel<T, kBits, kTilesM, 1, 2>;
  return groups == 1 ? wide_kernel<T, kBits, kTilesM, 2, 1> : wide_kernel<T, kBits, kTilesM, 2, 2>;
}
template <typename T, int kBits>
WideKernel with_tiles(int tiles_m, int quads, int groups) {
  if (tiles_m == 2) return with_quads<T, kBits, 2>(quads, groups);
  if (tiles_m == 4) return with_quads<T, kBits, 4>(quads, groups);
  return with_quads<T, kBits, 8>(quads, groups);
}
template <typename T>
WideKernel with_bits(int bits, int tiles_m, int quads, int groups) {
  if (bits == 2) return with_tiles<T, 2>(tiles_m, quads, groups);
  if (bits == 3) return with_tiles<T, 3>(tiles_m, quads, groups);
  return with_tiles<T, 4>(tiles_m, quads, groups);
}

// Bytes of shared memory behind the table: stages of activations and of codes; the sums later lie where they were.
int stage_bytes(const WidePlan& plan, const Format& format, int* codes_at) {
  const int stages = wide_stages(plan.tiles_m, plan.quads), groups = groups_of_unit(format.group_size);
  const int x = plan.k_warpgroups * stages * plan.tiles_m * 1024;
  const int codes = 4 * plan.warpgroups() * stages * wide_codes_stage(format.bits, plan.quads, groups);
  const int sums = plan.k_warpgroups > 1 ? 4 * plan.warpgroups() * plan.quads * plan.tiles_m * 512 : 0;
  *codes_at = x;
  return std::max(x + codes, sums);
}

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's entry point, without linking the driver.
Encode encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
}

}  // namespace

WidePlan make_wide_plan(const Shape& shape, const Format& format, const DeviceLimits& device, const PlanWish& wish) {
  WidePlan best;
  double least = 0;
  const int room = device.shared_per_block - kTableAddress - table_bytes(format.bits);
  for (int quads = 1; quads <= 2; ++quads) {
    if (wish.rows != 0 && (wish.rows + 3) / 4 < quads) continue;
    for (int row_warpgroups = 1; row_warpgroups <= 4; ++row_warpgroups) {
      if (wish.row_warps != 0 && wish.row_warps != row_warpgroups) continue;
      WidePlan plan;
      plan.tiles_m = shape.m <= 16 ? 2 : shape.m <= 32 ? 4 : 8;
      plan.quads = quads, plan.row_warpgroups = row_warpgroups;
      plan.row_warpgroups_inverse = ceil_div(256, row_warpgroups);
      plan.units = units_along_k(shape.k);
      plan.groups = tiled_groups(format.group_size, shape.k);
      plan.row_pieces = plan.units * (unit_bytes(format.bits) / 16);
      plan.group_shift = group_shift_of(format.group_size);
      const int most = wish.warps != 0 ? std::max(1, wish.warps / 4) : max_warpgroups(plan.tiles_m, quads);
      plan.k_warpgroups = std::min({most, max_warpgroups(plan.tiles_m, quads)}) / row_warpgroups;
      plan.k_warpgroups = std::min(plan.k_warpgroups, plan.units);
      plan.deal = deal_rows(shape, wish.blocks != 0 ? wish.blocks : device.sm_count, 4 * quads * row_warpgroups);
      plan.x_at = table_bytes(format.bits);
      int codes_at = 0;
      while (plan.k_warpgroups > 0 && stage_bytes(plan, format, &codes_at) > room) --plan.k_warpgroups;
      if (plan.k_warpgroups < 1) continue;
      const int bytes = stage_bytes(plan, format, &codes_at);
      plan.codes_at = plan.x_at + codes_at;
      plan.shared_bytes = kTableAddress + plan.x_at + bytes;
      plan.table_rounds = ceil_div(table_bytes(format.bits) / kTableStride / 4, 4 * plan.warpgroups());
      plan.valid = true;
      // Instructions of a warp on a multiprocessor, from the machine code, something for fetching activations that no
      // other warpgroup uses, and about 1600 for the begin and end
      // of a block; and with fewer than 20 warps latency shows.
      const int waves = ceil_div(plan.deal.blocks, device.sm_count);
      const double steps = ceil_div(plan.units, plan.k_warpgroups) * plan.k_warpgroups * row_warpgroups;
      const double work = waves * (steps * (55 + 8.0 * plan.tiles_m / row_warpgroups + 70 * quads) + 1600) /
                          std::min(1.0, plan.warpgroups() / 5.0);
      if (!best.valid || work < least) best = plan, least = work;
    }
  }
  return best;
}

std::string to_string(const WidePlan& plan) {
  if (!plan.valid) return "no plan";
  return "wide: " + std::to_string(plan.deal.blocks) + " blocks of " + std::to_string(plan.row_warpgroups) + " x " +
         std::to_string(plan.k_warpgroups) + " warpgroups (rows x K), " + std::to_string(plan.quads) +
         " x 64 rows a step, " + std::to_string(plan.tiles_m) + " x 8 tokens, " +
         std::to_string((plan.shared_bytes + 1023) / 1024) + " KB of shared memory";
}

cudaError_t launch_wide(const DecodeArguments& given, const WidePlan& plan, const Format& format, cudaStream_t stream) {
  const WideKernel kernel =
      (format.bf16 ? with_bits<__nv_bfloat16> : with_bits<__half>)(format.bits, plan.tiles_m, plan.quads,
                                                                   groups_of_unit(format.group_size));
  cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes);
  if (error != cudaSuccess) return error;
  const Encode encode = encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  TensorMap map = {};
  const uint64_t size[2] = {static_cast<uint64_t>(given.k), static_cast<uint64_t>(given.m)};
  const uint64_t stride[1] = {static_cast<uint64_t>(given.ldx) * 2};
  const uint32_t box[2] = {kUnitK, static_cast<uint32_t>(8 * plan.tiles_m)}, steps[2] = {1, 1};
  const CUresult result =
      encode(reinterpret_cast<CUtensorMap*>(map.bytes), CU_TENSOR_MAP_DATA_TYPE_UINT16, 2,
             const_cast<uint8_t*>(given.x), size, stride, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return cudaErrorInvalidValue;
  WideArguments arguments = {
      given.codes, given.scales, given.codebooks,        given.y, given.bias, given.ldx, given.ldy, given.m,
      given.n,     given.k,      given.dependent_launch, plan};
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(plan.deal.blocks);
  config.blockDim = static_cast<unsigned>(128 * plan.warpgroups());
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = given.dependent_launch ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments, map);
}

}  // namespace flute::cuda
