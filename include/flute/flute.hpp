#pragma once
/// Everything of the C++ API.
#include "flute/codebook.hpp"
#include "flute/dtype.hpp"
#include "flute/error.hpp"
#include "flute/gemm.hpp"
#include "flute/packed.hpp"
#include "flute/quantize.hpp"
#include "flute/threads.hpp"
#include "flute/tiled.hpp"
