// Which family of kernels takes how many tokens.
#include "cuda/multiply_plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "cuda/plan_cases.hpp"

namespace flute::cuda {
namespace {

/// What is wrong with one launch of decode kernels for `tokens` tokens, or nothing; `plan` must be what is planned for
/// these alone.
std::string wrong_in_launch(const DecodePlan& plan, int tokens, const PlanCase& one) {
  Shape shape = one.shape;
  shape.m = tokens;
  if (!plan.valid) return "a launch without a plan";
  if (8 * plan.tiles_m < tokens) return "too few tokens";
  const DecodePlan alone = make_decode_plan(shape, one.format, one.card.limits);
  return plan.shared_bytes == alone.shared_bytes && to_string(plan) == to_string(alone) ? "" : "another's plan";
}

/// The launches of a decode plan, as launch_multiply makes them.
std::string wrong_in_launches(const MultiplyPlan& plan, const PlanCase& one) {
  const int m = one.shape.m, left = m % kMaxDecodeTokens;
  if (plan.launches != (m + kMaxDecodeTokens - 1) / kMaxDecodeTokens) return "launches";
  if (m <= kMaxDecodeTokens) return plan.rest.valid ? "a rest of one launch" : wrong_in_launch(plan.decode, m, one);
  std::string wrong = wrong_in_launch(plan.decode, kMaxDecodeTokens, one);
  if (plan.rest.valid != (left > 0) || plan.rest_tokens != left) return "the rest";
  if (wrong.empty() && left > 0) wrong = wrong_in_launch(plan.rest, left, one);
  return wrong;
}

/// Returns whether the case's plan is right, and prints what is not. Where a card has wgmma, measurements decide from
/// 17 to kMaxDecodeTokens tokens; beyond, decode would read the weights more than once.
bool right(const PlanCase& one) {
  const MultiplyPlan plan = make_multiply_plan(one.shape, one.format, one.card.limits);
  const bool wgmma = one.card.limits.wgmma, few = plan.family == Family::kDecode;
  std::string wrong = plan.valid() ? "" : "none";
  if (few && one.shape.m > kMaxDecodeTokens) wrong = "decode";
  if (plan.family == Family::kPrefill && (!wgmma || one.shape.m <= 16)) wrong = "prefill on wgmma";
  if (plan.family == Family::kPrefillMma && (wgmma || one.shape.m <= kMaxDecodeTokens)) wrong = "prefill on mma";
  if (wrong.empty() && !few && plan.launches != 1) wrong = "launches";
  if (wrong.empty() && few) wrong = wrong_in_launches(plan, one);
  const char* words = few ? "decode: " : plan.family == Family::kPrefill ? "prefill: " : "prefill on mma: ";
  if (wrong.empty() && !to_string(plan).starts_with(words)) wrong = "words";
  EXPECT_EQ(wrong, "") << one.text(plan);
  return wrong.empty();
}

TEST(MultiplyPlan, ModelShapesHaveARightPlanOnEveryCard) { for_model_shapes(kMostPlanTokens, right); }

TEST(MultiplyPlan, RandomShapesHaveARightPlanOnEveryCard) { for_random_shapes(10000, kMostPlanTokens, right); }

// The laboratory compares the families: each must be had for any number of tokens, where the card has it.
TEST(MultiplyPlan, EachFamilyCanBeAskedFor) {
  for_random_shapes(2000, kMostPlanTokens, [](const PlanCase& one) {
    const MultiplyPlan decode = make_multiply_plan(Family::kDecode, one.shape, one.format, one.card.limits);
    const MultiplyPlan prefill = make_multiply_plan(Family::kPrefill, one.shape, one.format, one.card.limits);
    EXPECT_EQ(decode.family, Family::kDecode);
    EXPECT_EQ(wrong_in_launches(decode, one), "") << one.text(decode);
    EXPECT_EQ(prefill.family, Family::kPrefill);
    EXPECT_EQ(prefill.valid(), one.card.limits.wgmma) << one.text(prefill);
    const MultiplyPlan mma = make_multiply_plan(Family::kPrefillMma, one.shape, one.format, one.card.limits);
    EXPECT_EQ(mma.family, Family::kPrefillMma);
    EXPECT_TRUE(mma.valid()) << one.text(mma);
    return !testing::Test::HasFailure();
  });
}

// `lab plan` shows all of it: that tokens go in pieces, and what the last piece gets.
TEST(MultiplyPlan, WordsNameEveryLaunch) {
  const auto words = [](int m) {
    return to_string(make_multiply_plan(Family::kDecode, {m, 4096, 4096}, {}, kCards[1].limits));
  };
  const std::string all = words(64) + ", 64 tokens at a time";
  EXPECT_EQ(words(128), all);
  EXPECT_EQ(words(131), all + "; the last 3: " + words(3));
}

TEST(MultiplyPlan, NothingIsPlannedForNoTokens) {
  for (const Card& card : kCards) {
    for (const int m : {-1, 0}) {
      const MultiplyPlan plan = make_multiply_plan({m, 4096, 4096}, {}, card.limits);
      EXPECT_FALSE(plan.valid()) << card.name << ", m " << m;
      EXPECT_EQ(to_string(plan), "no plan");
    }
  }
}

}  // namespace
}  // namespace flute::cuda
