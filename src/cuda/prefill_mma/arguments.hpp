// What a prefill kernel on mma.sync is given, by value.
#pragma once

#include "cuda/arguments.hpp"
#include "cuda/prefill_mma/plan.hpp"

namespace flute::cuda {

struct PrefillMmaArguments : MultiplyArguments {
  PrefillMmaPlan plan;
};

}  // namespace flute::cuda
