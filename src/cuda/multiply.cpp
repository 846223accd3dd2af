#include "cuda/multiply.hpp"

#include <mutex>
#include <set>
#include <utility>

#include "base/fail.hpp"
#include "cuda/decode/decode.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"
#include "cuda/prefill/prefill.hpp"
#include "cuda/prefill_mma/prefill_mma.hpp"

namespace flute::cuda {
namespace {

/// Asking for a kernel's attributes loads it, which a captured call could not.
void load(const void* kernel) {
  cudaFuncAttributes attributes = {};
  check(cudaFuncGetAttributes(&attributes, kernel), "kernel");
}

DecodeKernel decode_kernel(const void* kernel) { return reinterpret_cast<DecodeKernel>(const_cast<void*>(kernel)); }
PrefillKernel prefill_kernel(const void* kernel) { return reinterpret_cast<PrefillKernel>(const_cast<void*>(kernel)); }
PrefillMmaKernel prefill_mma_kernel(const void* kernel) {
  return reinterpret_cast<PrefillMmaKernel>(const_cast<void*>(kernel));
}

/// The kernel, unless there is none.
template <typename Kernel, typename Plan>
const void* found(Kernel kernel, const Plan& plan) {
  if (kernel == nullptr) fail(ErrorCode::kUnsupported, "no kernel for the plan {}", to_string(plan));
  return reinterpret_cast<const void*>(kernel);
}

void launch_decode_of(const void* kernel, const DecodePlan& plan, const MultiplyArguments& given, int token, int tokens,
                      cudaStream_t stream) {
  DecodeArguments arguments = {given, plan};
  arguments.m = tokens;
  arguments.x += token * given.ldx * 2;
  arguments.y = static_cast<uint8_t*>(given.y) + token * given.ldy * 2;
  check(launch_decode(decode_kernel(kernel), arguments, stream), "gemm");
}

}  // namespace

Multiply::Multiply(const MultiplyPlan& given, const Format& format) : plan(given) {
  if (plan.family == Family::kDecode) {
    kernel = found(find_decode_kernel(plan.decode, format), plan);
    if (plan.rest.valid) rest_kernel = found(find_decode_kernel(plan.rest, format), plan.rest);
  } else if (plan.family == Family::kPrefillMma) {
    kernel = found(plan.prefill_mma.valid ? find_prefill_mma_kernel(plan.prefill_mma.tile, format) : nullptr, plan);
  } else {
    kernel = found(plan.prefill.valid ? find_prefill_kernel(plan.prefill.tile, format) : nullptr, plan);
  }
}

void load_kernels(const Multiply& multiply, const DeviceLimits& device, int index) {
  static std::mutex mutex;
  static std::set<std::pair<int, const void*>> loaded;
  const std::lock_guard lock(mutex);
  for (const void* kernel : {multiply.kernel, multiply.rest_kernel}) {
    if (kernel == nullptr || loaded.count({index, kernel}) != 0) continue;
    load(kernel);
    const bool is_prefill = multiply.plan.family == Family::kPrefill;
    check(is_prefill ? prepare_prefill_kernel(prefill_kernel(kernel), device) : prepare_kernel(kernel, device),
          "kernel");
    loaded.insert({index, kernel});
  }
}

void load_prefill_kernels(const Format& format, const DeviceLimits& device, int index) {
  Multiply multiply;
  const auto load_kernel = [&](Family family, const void* kernel) {
    multiply.plan.family = family, multiply.kernel = kernel;
    load_kernels(multiply, device, index);
  };
  for (int tile = 0; device.wgmma && tile < kPrefillTileCount; ++tile) {
    load_kernel(Family::kPrefill, reinterpret_cast<const void*>(find_prefill_kernel(tile, format)));
  }
  for (int tile = 0; !device.wgmma && tile < kPrefillMmaTileCount; ++tile) {
    load_kernel(Family::kPrefillMma, reinterpret_cast<const void*>(find_prefill_mma_kernel(tile, format)));
  }
}

void launch_multiply(const Multiply& multiply, const MultiplyArguments& arguments, cudaStream_t stream) {
  const MultiplyPlan& plan = multiply.plan;
  if (plan.family == Family::kPrefill) {
    check(launch_prefill(prefill_kernel(multiply.kernel), {arguments, plan.prefill}, stream), "gemm");
    return;
  }
  if (plan.family == Family::kPrefillMma) {
    check(launch_prefill_mma(prefill_mma_kernel(multiply.kernel), {arguments, plan.prefill_mma}, stream), "gemm");
    return;
  }
  int token = 0;
  for (; arguments.m - token >= kMaxDecodeTokens; token += kMaxDecodeTokens) {
    launch_decode_of(multiply.kernel, plan.decode, arguments, token, kMaxDecodeTokens, stream);
  }
  if (token == arguments.m) return;
  const bool only = token == 0;
  launch_decode_of(only ? multiply.kernel : multiply.rest_kernel, only ? plan.decode : plan.rest, arguments, token,
                   arguments.m - token, stream);
}

}  // namespace flute::cuda
