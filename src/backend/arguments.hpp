#pragma once
#include "base/checked.hpp"
#include "base/fail.hpp"
#include "flute/gemm.hpp"

namespace flute {

/// The arguments of a multiply with an [n, k] matrix, leading dimensions filled in. Throws kInvalidArgument on what no
/// backend could do; of x and y only where they would be read.
inline GemmArgs checked_arguments(const GemmArgs& given, int64_t n, int64_t k) {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  GemmArgs args = given;
  if (args.m < 0) fail(kInvalid, "gemm: expected m >= 0, found {}", args.m);
  if (args.dtype > DType::kBF16) {
    fail(kInvalid, "gemm: expected dtype fp32, fp16 or bf16, found {}", static_cast<int>(args.dtype));
  }
  if (args.ldx == 0) args.ldx = k;
  if (args.ldy == 0) args.ldy = n;
  if (args.ldx < k) fail(kInvalid, "gemm: expected ldx >= k = {}, found {}", k, args.ldx);
  if (args.ldy < n) fail(kInvalid, "gemm: expected ldy >= n = {}, found {}", n, args.ldy);
  if (args.m == 0 || n == 0) return args;
  if (args.x == nullptr || args.y == nullptr) {
    fail(kInvalid, "gemm: expected x and y, found null for {}", args.x == nullptr ? "x" : "y");
  }
  if (!checked_mul(n * k, args.m) || !checked_mul(args.ldx, args.m * 4) || !checked_mul(args.ldy, args.m * 4)) {
    fail(kInvalid, "gemm: m = {} is more than n = {}, k = {} allow", args.m, n, k);
  }
  return args;
}

}  // namespace flute
