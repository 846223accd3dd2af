/* Quantizes a matrix to 4, 3 and 2 bits with the NormalFloat tables, multiplies with each, and prints what that cost.
 *   cc quantize_and_multiply.c $(pkg-config --cflags --libs flute) -lm */
#include <flute/flute.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 1024, K = 2048 }; /* output and input features */

static void check(flute_status status) {
  if (status == FLUTE_OK) return;
  fprintf(stderr, "%s\n", flute_last_error_message());
  exit(1);
}

/* A normally distributed number, as trained weights nearly are. */
static float normal(void) {
  const double u = (rand() + 1.0) / (RAND_MAX + 2.0), v = rand() / (double)RAND_MAX;
  return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

int main(void) {
  static float weight[N * K], x[K], y[N];
  for (int i = 0; i < N * K; ++i) weight[i] = 0.02f * normal();
  for (int i = 0; i < K; ++i) x[i] = normal();

  for (int bits = 4; bits >= 2; --bits) {
    float codebook[16];
    check(flute_codebook_named("nf", bits, codebook, NULL));
    flute_quantize_args quantize = {.size = sizeof(quantize), .weight = weight, .n = N, .k = K, .bits = bits};
    quantize.group_size = 64;
    quantize.scale_dtype = FLUTE_F16;
    quantize.codebook = codebook;
    flute_packed* packed;
    check(flute_quantize_rtn(&quantize, &packed));

    flute_packed_view view = {.size = sizeof(view)};
    check(flute_packed_get_view(packed, &view));
    const flute_packed_view* segments[] = {&view};
    flute_matrix* matrix;
    check(flute_matrix_create((flute_device){FLUTE_CPU, 0}, FLUTE_F32, segments, 1, NULL, &matrix));
    const flute_gemm_args gemm = {.size = sizeof(gemm), .m = 1, .x = x, .y = y, .dtype = FLUTE_F32};
    check(flute_gemm(matrix, &gemm));

    double error = 0, norm = 0;
    for (int n = 0; n < N; ++n) {
      double exact = 0;
      for (int k = 0; k < K; ++k) exact += (double)weight[n * K + k] * x[k];
      error += (y[n] - exact) * (y[n] - exact);
      norm += exact * exact;
    }
    printf("%d bits: relative error of the product %.3f\n", bits, sqrt(error / norm));
    flute_matrix_destroy(matrix);
    flute_packed_destroy(packed);
  }
}
