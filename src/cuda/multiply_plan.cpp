#include "cuda/multiply_plan.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace flute::cuda {

namespace {

// Whether prefill is the faster of the two, as an H100 was seen to have it (docs/kernel-notes.md): more tokens pay for
// its beginning and end the sooner, the more weights there are.
bool suits_prefill(const Shape& shape) {
  const int64_t weights = static_cast<int64_t>(shape.n) * shape.k;
  return shape.m > 64 || (shape.m > 32 && weights >= 700'000) || (shape.m > 16 && weights >= 30'000'000);
}

}  // namespace

MultiplyPlan make_multiply_plan(Family family, const Shape& shape, const Format& format, const DeviceLimits& device,
                                const PlanWish& wish) {
  MultiplyPlan plan;
  plan.family = family;
  if (family == Family::kPrefill) {
    plan.prefill = make_prefill_plan(shape, format, device, wish);
    return plan;
  }
  if (family == Family::kPrefillMma) {
    plan.prefill_mma = make_prefill_mma_plan(shape, format, device, wish);
    return plan;
  }
  Shape part = shape;
  part.m = std::min(shape.m, kMaxDecodeTokens);
  plan.launches = (std::max(shape.m, 1) + kMaxDecodeTokens - 1) / kMaxDecodeTokens;
  plan.decode = make_decode_plan(part, format, device, wish);
  plan.rest_tokens = shape.m % kMaxDecodeTokens;
  if (shape.m > kMaxDecodeTokens && plan.rest_tokens > 0) {
    part.m = plan.rest_tokens;
    plan.rest = make_decode_plan(part, format, device, wish);
  }
  return plan;
}

MultiplyPlan make_multiply_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                                const PlanWish& wish) {
  if (device.wgmma && suits_prefill(shape)) {
    return make_multiply_plan(Family::kPrefill, shape, format, device, wish);
  }
  if (shape.m > kMaxDecodeTokens) {  // decode would read the weights more than once
    const MultiplyPlan plan = make_multiply_plan(Family::kPrefillMma, shape, format, device, wish);
    if (plan.valid()) return plan;
  }
  return make_multiply_plan(Family::kDecode, shape, format, device, wish);
}

std::string to_string(const MultiplyPlan& plan) {
  if (plan.family == Family::kPrefill) return to_string(plan.prefill);
  if (plan.family == Family::kPrefillMma) return to_string(plan.prefill_mma);
  std::string text = to_string(plan.decode);
  if (plan.launches > 1) text += fmt::format(", {} tokens at a time", kMaxDecodeTokens);
  if (plan.rest.valid) text += fmt::format("; the last {}: {}", plan.rest_tokens, to_string(plan.rest));
  return text;
}

}  // namespace flute::cuda
