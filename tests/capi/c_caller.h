#pragma once
#include "flute/flute.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a C program does: quantizes weight ([n, k], fp32) with NF4 in groups of 64, multiplies x ([m, k]) with it on two
 * threads, and writes the dequantized weight and y ([m, n]). Returns the first status that is not FLUTE_OK. */
flute_status c_caller_multiply(const float* weight, int64_t n, int64_t k, const float* x, int64_t m, float* dequantized,
                               float* y);

#ifdef __cplusplus
}
#endif
