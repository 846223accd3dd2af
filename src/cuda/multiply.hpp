// One multiply on the device, by one of the families of kernels.
#pragma once

#include <cuda_runtime.h>

#include "cuda/arguments.hpp"
#include "cuda/multiply_plan.hpp"

namespace flute::cuda {

// A plan with its kernels.
struct Multiply {
  MultiplyPlan plan;
  const void *kernel = nullptr, *rest_kernel = nullptr;  // of the family

  Multiply() = default;
  // Throws kUnsupported where the plan is not valid or its kernel is not built.
  Multiply(const MultiplyPlan& plan, const Format& format);
};

// Loads the kernels onto the current device, which is number `index`, ahead of any launch or capture, so that launching
// has nothing to set up. Each is loaded once; cheap where all have been.
void load_kernels(const Multiply& multiply, const DeviceLimits& device, int index);
// The same for all prefill kernels that the device may take for a format: a call may make its plan.
void load_prefill_kernels(const Format& format, const DeviceLimits& device, int index);

void launch_multiply(const Multiply& multiply, const MultiplyArguments& arguments, cudaStream_t stream);

}  // namespace flute::cuda
