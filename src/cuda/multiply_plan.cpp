#include "cuda/multiply_plan.hpp"

#include <algorithm>

namespace flute::cuda {

namespace {

// Up to here decode is faster (docs/kernel-notes.md).
constexpr int kMostTokensDecoded = 32;

}  // namespace

MultiplyPlan make_multiply_plan(Family family, const Shape& shape, const Format& format, const DeviceLimits& device,
                                const PlanWish& wish) {
  MultiplyPlan plan;
  plan.family = family;
  if (family == Family::kPrefill) {
    plan.prefill = make_prefill_plan(shape, format, device, wish);
    return plan;
  }
  Shape part = shape;
  part.m = std::min(shape.m, kMaxDecodeTokens);
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
  const bool many = shape.m > kMostTokensDecoded && device.wgmma;
  return make_multiply_plan(many ? Family::kPrefill : Family::kDecode, shape, format, device, wish);
}

std::string to_string(const MultiplyPlan& plan) {
  return plan.family == Family::kPrefill ? to_string(plan.prefill) : to_string(plan.decode);
}

}  // namespace flute::cuda
