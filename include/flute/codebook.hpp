#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

namespace flute {

/// A lookup table. `values[row][code][component]`, row-major: `rows` is 1 (one table for the matrix) or N (one per
/// output feature); `vector_width` is 1, or 2 for vector codebooks (two consecutive weights a code; reserved: every
/// function of version 1 refuses it with kUnsupported).
struct Codebook {
  int bits = 4;               ///< 1..8
  int64_t rows = 1;           ///< 1 or N
  int vector_width = 1;       ///< v
  std::vector<float> values;  ///< rows * 2^(bits*v) * v finite numbers, in any order, never renormalised
};

/// Throws kInvalidFormat unless the size matches and every value is finite. `what` starts the message.
void validate(const Codebook& codebook, std::string_view what);

/// The largest magnitude `m` that round-to-nearest quantization divides absmax by (docs/format.md, "scales").
/// For the named `int` tables that is 2^(bits-1)-1, for every other table max |value|.
float codebook_max_magnitude(const Codebook& codebook, bool is_int);

/// NormalFloat, bits 2..8. Quantiles of the standard normal distribution with an exact zero, scaled to absmax 1:
/// Dettmers et al., "QLoRA" (2023), appendix E, generalised to any width as FLUTE does (Guo et al. 2024, section 2.2).
/// At 4 bits these are the sixteen published values, bit for bit.
Codebook nf_codebook(int bits);

/// Symmetric integers -2^(bits-1) .. 2^(bits-1)-1 in ascending order, bits 2..8: GPTQ's and Marlin's grid.
Codebook int_codebook(int bits);

/// Small floats in code order (sign bit on top), bits 3..8: e1m1, e2m1, e2m2, e2m3 (or e3m2), e3m3, e4m3. Exponent bias
/// 2^(exponent bits - 1) - 1, subnormals, no infinities (OCP microscaling's rules); e4m3 is OCP's "fn", where the codes
/// that mean NaN repeat the largest magnitude. `variant` is "" or one of those names.
Codebook fp_codebook(int bits, std::string_view variant = "");

/// By name: "nf", "int", "fp", or an fp variant such as "e3m2". Throws kInvalidArgument otherwise ("kmeans" is fitted
/// to data, see quantize.hpp, and a file is read by the io layer).
Codebook named_codebook(std::string_view name, int bits);

}  // namespace flute
