#include "cuda/decode/decode.hpp"

#include "cuda/decode/instances.hpp"
#include "cuda/launch.hpp"

namespace flute::cuda {

DecodeKernel find_decode_kernel(const DecodePlan& plan, const Format& format) {
  const int groups = groups_of_unit(format.group_size);
  if (!plan.valid) return nullptr;
  if (format.bits == 4)
    return (format.bf16 ? decode_bf16_4 : decode_fp16_4)(plan.tiles_m, plan.rows, plan.depth, groups);
  if (format.bits == 3)
    return (format.bf16 ? decode_bf16_3 : decode_fp16_3)(plan.tiles_m, plan.rows, plan.depth, groups);
  if (format.bits == 2)
    return (format.bf16 ? decode_bf16_2 : decode_fp16_2)(plan.tiles_m, plan.rows, plan.depth, groups);
  return nullptr;
}

cudaError_t launch_decode(DecodeKernel kernel, const DecodeArguments& arguments, cudaStream_t stream) {
  return launch_kernel(kernel, arguments, arguments.plan.deal.blocks, arguments.plan.warps(), stream);
}

}  // namespace flute::cuda
