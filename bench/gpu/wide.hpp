// The plan of the multiply for more tokens on wgmma (wide.cuh), and what its kernels are given.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "cuda/decode/arguments.hpp"

namespace flute::cuda {

// Warpgroups of a block: registers set the limit.
FLUTE_HOST_DEVICE constexpr int max_warpgroups(int tiles_m, int quads) {
  return quads == 1 ? (tiles_m <= 4 ? 6 : 5) : 4;
}
// Quads of row groups (64 rows) of a warpgroup, at most.
constexpr int kMaxQuads = 2;
FLUTE_HOST_DEVICE constexpr int wide_stages(int tiles_m, int quads) { return tiles_m <= 4 && quads == 1 ? 4 : 3; }
// Codes and scales of a warp in a step.
FLUTE_HOST_DEVICE constexpr int wide_codes_stage(int bits, int quads, int groups) {
  return (quads * unit_bytes(bits) + quads * groups * kScaleBytes + 127) / 128 * 128;
}

struct WidePlan {
  int tiles_m = 0, quads = 1;
  RowDeal deal;
  int row_warpgroups = 1, row_warpgroups_inverse = 256, k_warpgroups = 1;
  int units = 0, groups = 0, row_pieces = 0, group_shift = 0, table_rounds = 0;
  int x_at = 0, codes_at = 0, shared_bytes = 0;  // in shared memory, from the table on
  bool valid = false;

  int warpgroups() const { return row_warpgroups * k_warpgroups; }
};

WidePlan make_wide_plan(const Shape& shape, const Format& format, const DeviceLimits& device,
                        const PlanWish& wish = {});

// On the caller's stream; the arguments' own plan is not looked at.
cudaError_t launch_wide(const DecodeArguments& arguments, const WidePlan& plan, const Format& format,
                        cudaStream_t stream);

// Of the activations, for the copy engine: what the driver's cuTensorMapEncodeTiled fills.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

std::string to_string(const WidePlan& plan);

struct WideArguments {
  const uint8_t *codes, *scales;
  const void* codebooks;
  void* y;
  const void* bias;
  int64_t ldx, ldy;
  int m, n, k;
  bool dependent_launch;
  WidePlan plan;
};

}  // namespace flute::cuda
