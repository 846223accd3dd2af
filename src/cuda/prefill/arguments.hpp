// What a prefill kernel is given, by value.
#pragma once

#include "cuda/arguments.hpp"
#include "cuda/prefill/plan.hpp"

namespace flute::cuda {

struct PrefillArguments : MultiplyArguments {
  PrefillPlan plan;
};

// Of the activations, for the copy engine: what the driver's cuTensorMapEncodeTiled fills.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

}  // namespace flute::cuda
