// What a decode kernel is given, by value.
#pragma once

#include "cuda/arguments.hpp"
#include "cuda/decode/plan.hpp"

namespace flute::cuda {

struct DecodeArguments : MultiplyArguments {
  DecodePlan plan;
};

}  // namespace flute::cuda
