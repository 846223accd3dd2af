// Which family of kernels multiplies, and its plan: chosen from shape, format and device alone.
#pragma once

#include "cuda/decode/plan.hpp"
#include "cuda/prefill/plan.hpp"
#include "cuda/prefill_mma/plan.hpp"

namespace flute::cuda {

enum class Family { kDecode, kPrefill, kPrefillMma };

// More tokens than one decode launch takes go in several: kMaxDecodeTokens each, and the rest.
struct MultiplyPlan {
  Family family = Family::kDecode;
  int launches = 1;
  DecodePlan decode, rest;
  int rest_tokens = 0;
  PrefillPlan prefill;
  PrefillMmaPlan prefill_mma;

  bool valid() const {
    return family == Family::kPrefill      ? prefill.valid
           : family == Family::kPrefillMma ? prefill_mma.valid
                                           : decode.valid;
  }
};

MultiplyPlan make_multiply_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                                const PlanWish& wish = {});
// Of one family, whichever would be chosen.
MultiplyPlan make_multiply_plan(Family family, const Shape& shape, const Format& format, const DeviceLimits& device,
                                const PlanWish& wish = {});

std::string to_string(const MultiplyPlan& plan);

}  // namespace flute::cuda
