// Host side of one launch of prefill on mma.sync.
#pragma once

#include <cuda_runtime.h>

#include "cuda/prefill_mma/arguments.hpp"

namespace flute::cuda {

using PrefillMmaKernel = void (*)(PrefillMmaArguments);

// The kernel for a tile and a format, or null where none is built.
PrefillMmaKernel find_prefill_mma_kernel(int tile, const Format& format);

cudaError_t launch_prefill_mma(PrefillMmaKernel kernel, const PrefillMmaArguments& arguments, cudaStream_t stream);

}  // namespace flute::cuda
