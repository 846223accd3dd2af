// CUDA's header of this name, for the emulated device.
#pragma once
#include "cuda_runtime.h"
