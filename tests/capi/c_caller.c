/* Compiled as strict C11: fails to build when the header needs C++ or an extension. */
#include "capi/c_caller.h"

flute_status c_caller_multiply(const float* weight, int64_t n, int64_t k, const float* x, int64_t m, float* dequantized,
                               float* y) {
  flute_threads* threads = NULL;
  flute_packed* packed = NULL;
  flute_matrix* matrix = NULL;
  float codebook[16];
  float max_magnitude = 0;
  flute_packed_view view = {.size = sizeof(view)};
  const flute_packed_view* segments[1] = {&view};
  const flute_device cpu = {FLUTE_CPU, 0};

  flute_status status = flute_codebook_named("nf", 4, codebook, &max_magnitude);
  if (status == FLUTE_OK) status = flute_threads_create(2, &threads);
  if (status == FLUTE_OK) {
    flute_quantize_args args = {.size = sizeof(args)};
    args.weight = weight;
    args.n = n;
    args.k = k;
    args.group_size = 64;
    args.dtype = FLUTE_F32;
    args.scale_dtype = FLUTE_F16;
    args.codebook = codebook;
    args.bits = 4;
    args.max_magnitude = max_magnitude;
    args.threads = threads;
    status = flute_quantize_rtn(&args, &packed);
  }
  if (status == FLUTE_OK) status = flute_packed_get_view(packed, &view);
  if (status == FLUTE_OK) status = flute_dequantize(&view, 0, n, FLUTE_F32, dequantized);
  if (status == FLUTE_OK) status = flute_matrix_create(cpu, FLUTE_F32, segments, 1, threads, &matrix);
  if (status == FLUTE_OK) {
    flute_gemm_args args = {.size = sizeof(args)};
    args.m = m;
    args.x = x;
    args.y = y;
    args.dtype = FLUTE_F32;
    args.threads = threads;
    status = flute_gemm(matrix, &args);
  }
  flute_matrix_destroy(matrix);
  flute_packed_destroy(packed);
  flute_threads_destroy(threads);
  return status;
}
