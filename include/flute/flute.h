/* The C ABI of FLUTE: quantize weight matrices to small codes and a table, and multiply with them.
 *
 *   W[n,k] = codebook[code[n,k]] * scale[n, k / group_size] (+ offset[n, k / group_size])
 *   Y[m,n] = sum over k of X[m,k] * W[n,k] (+ bias[n])
 *
 * Conventions
 * - Every function that can fail returns a flute_status. On failure nothing is written to the outputs, and
 *   flute_last_error_message() says in one line what was wrong, what was expected and what was found.
 * - Handles (flute_threads, flute_packed, flute_matrix, flute_checkpoint) are made by the functions that take a
 *   pointer to a handle last, and freed by their ..._destroy, which accepts NULL.
 * - Structs begin with `size`, to be set to sizeof the struct; fields you do not use must be 0. In C,
 *   `flute_gemm_args args = {.size = sizeof(args)};` does both. A later version may append fields: a caller compiled
 *   against this one goes on working.
 * - Matrices are row-major. A weight matrix is [n, k]: n output features, k input features; k is a multiple of 32.
 * - Buffers must be aligned to their element. Sizes and leading dimensions count elements unless named bytes.
 * - Handles may be used by several threads at once, except while being destroyed. One flute_threads serves one call at
 * a time; calls that share one wait for each other.
 * - No function prints, aborts or throws.
 */
#ifndef FLUTE_FLUTE_H_
#define FLUTE_FLUTE_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------- version, status, types */

/* Raised when a change of this header breaks callers. */
#define FLUTE_ABI_VERSION 1

/* The library's version, such as "0.1.0". Static storage. */
const char* flute_version(void);

/* The FLUTE_ABI_VERSION that the library was built with: a caller compares it with its own. */
int32_t flute_abi_version(void);

typedef int32_t flute_status;
enum {
  FLUTE_OK = 0,
  FLUTE_INVALID_ARGUMENT = 1, /* the caller passed something wrong */
  FLUTE_INVALID_FORMAT = 2,   /* a file or buffer does not hold what it should */
  FLUTE_IO = 3,               /* the operating system refused a file operation */
  FLUTE_UNSUPPORTED = 4,      /* well-formed, but this build or device cannot do it */
  FLUTE_INTERNAL = 5,         /* a defect of this library */
  FLUTE_OUT_OF_MEMORY = 6,
  FLUTE_DEVICE = 7 /* a device or its driver refused an operation */
};

/* Why the last failed call of this thread failed; "" when none did. Valid until this thread's next failing call. */
const char* flute_last_error_message(void);

typedef int32_t flute_dtype;
enum { FLUTE_F32 = 0, FLUTE_F16 = 1, FLUTE_BF16 = 2 };

/* Where a matrix lives and a multiply runs. */
typedef struct flute_device {
  int32_t kind;  /* FLUTE_CPU or FLUTE_CUDA */
  int32_t index; /* 0 for the CPU */
} flute_device;
enum { FLUTE_CPU = 0, FLUTE_CUDA = 1 };

/* ---------------------------------------------------------------------------------------------------------- threads */

typedef struct flute_threads flute_threads;

/* A pool of `count` threads, the caller's included; 0: as many as the machine offers this process. Where a function
 * takes a pool, NULL means the calling thread alone. Results never depend on the number of threads. */
flute_status flute_threads_create(int32_t count, flute_threads** threads);
void flute_threads_destroy(flute_threads* threads);
/* Threads of the pool, the caller's included; 1 for NULL. */
int32_t flute_threads_size(const flute_threads* threads);

/* -------------------------------------------------------------------------------------------- codebooks and packing */

/* Writes the named table to values[2^bits] and the magnitude that absmax is divided by in round-to-nearest quantization
 * (flute_quantize_args.max_magnitude) to *max_magnitude, which may be NULL. Names: "nf" (bits 2..8), "int" (2..8), "fp"
 * (3..8) and its variants "e1m1", "e2m1", "e2m2", "e2m3", "e3m2", "e3m3", "e4m3", each at its own width. */
flute_status flute_codebook_named(const char* name, int32_t bits, float* values, float* max_magnitude);

/* Reads a codebook file, {"bits": b, "values": [2^b numbers]}: *bits, then values[2^b]. `values` must have room for
 * `capacity` floats; 256 is enough for any file. */
flute_status flute_codebook_read(const char* path, int32_t* bits, float* values, size_t capacity);

/* Fits a table to a weight matrix (k-means of the weights, each divided by its group's absmax): values[2^bits],
 * ascending. weight: [n, k] of `dtype`; bits 1..8; group_size 32, 64, 128, 256 or -1 (one scale a row). */
flute_status flute_codebook_fit_kmeans(const void* weight, flute_dtype dtype, int64_t n, int64_t k, int32_t bits,
                                       int64_t group_size, flute_threads* threads, float* values);

/* Packs codes[count], each < 2^bits, into words[count * bits / 32]: code j in bits [j*bits, (j+1)*bits) of the
 * little-endian bit stream. count: a multiple of 32; bits 1..8. */
flute_status flute_pack_codes(const uint8_t* codes, int64_t count, int32_t bits, uint32_t* words);
/* The inverse: words[count * bits / 32] to codes[count]. */
flute_status flute_unpack_codes(const uint32_t* words, int64_t count, int32_t bits, uint8_t* codes);

/* ------------------------------------------------------------------------------------------------- packed matrices */

/* A quantized matrix in the packed layout, the one of checkpoints; the buffers stay their owner's. */
typedef struct flute_packed_view {
  size_t size;        /* sizeof(flute_packed_view) */
  int64_t n, k;       /* output and input features */
  int64_t group_size; /* 32, 64, 128, 256: consecutive k that share a scale, the last group may be short; -1: all */
  int32_t bits;       /* 1..8 */
  flute_dtype scale_dtype; /* of scales and offsets */
  const uint32_t* codes;   /* [n, k * bits / 32], packed as by flute_pack_codes, row by row */
  const void* scales;      /* [n, groups], groups = ceil(k / group_size), or 1 */
  const void* offsets;     /* [n, groups], or NULL */
  const float* codebook;   /* [codebook_rows, 2^bits], finite, in any order */
  int64_t codebook_rows;   /* 1: one table for the matrix; n: one per row */
} flute_packed_view;

/* A packed matrix that owns its buffers. */
typedef struct flute_packed flute_packed;

/* Points *view, whose `size` is set, at the buffers; valid until flute_packed_destroy. */
flute_status flute_packed_get_view(const flute_packed* packed, flute_packed_view* view);
void flute_packed_destroy(flute_packed* packed);

typedef struct flute_quantize_args {
  size_t size;        /* sizeof(flute_quantize_args) */
  const void* weight; /* [n, k] of `dtype` */
  int64_t n, k;
  int64_t group_size; /* 32, 64, 128, 256 or -1 */
  flute_dtype dtype;
  flute_dtype scale_dtype;
  const float* codebook; /* [codebook_rows, 2^bits] */
  int64_t codebook_rows; /* 1 or n; 0 means 1 */
  int32_t bits;          /* 1..8 */
  float max_magnitude;   /* what absmax is divided by; 0: the largest magnitude of the codebook */
  float clip;            /* multiplies absmax, in (0, 1]; 0 means 1 */
  flute_threads* threads;
} flute_quantize_args;

/* Round-to-nearest quantization. For each group: s = absmax * clip / max_magnitude, rounded to scale_dtype; the code is
 * that of the value nearest to w / s, ties to the lower code. FLUTE_INVALID_ARGUMENT names row and column of a weight
 * that is NaN or infinite, or whose scale would be. */
flute_status flute_quantize_rtn(const flute_quantize_args* args, flute_packed** packed);

/* The same with scales and table chosen to leave little squared error in the weight: the scale of each group is
 * searched for around absmax / the largest magnitude of the table, and the table, which begins as args.codebook (of one
 * row), becomes one of the matrix's own. args.clip is 0 or 1. docs/quantizers.md says how. */
flute_status flute_quantize_mse(const flute_quantize_args* args, flute_packed** packed);

/* Writes rows [row_begin, row_end) of the dequantized matrix to out[row_end - row_begin, k] of `dtype`, each product
 * rounded as a multiply in that dtype rounds it. */
flute_status flute_dequantize(const flute_packed_view* view, int64_t row_begin, int64_t row_end, flute_dtype dtype,
                              void* out);

/* ------------------------------------------------------------------------------------------ matrices and the multiply
 */

/* A quantized matrix made ready for one device. Immutable. */
typedef struct flute_matrix flute_matrix;

/* Copies 1 to 4 packed matrices into the device's own layout, stacked along n (as q, k and v of an attention layer
 * are). They share k, bits and group size; each keeps its own codebook; n of all but the last must be a multiple of 32.
 * FLUTE_UNSUPPORTED when this build has no such device or the device cannot take the format: CUDA takes 2, 3 and 4 bits
 * with one codebook a segment and no offsets.
 * dtype: CUDA: of the activations, FLUTE_F16 or FLUTE_BF16; codebooks and scales are kept rounded to it, and flute_gemm
 * takes no other. The CPU takes every dtype and ignores it.
 * CUDA: the buffers may lie in host memory or on the device itself, each for itself; on return they have been read.
 * Data that a kernel writes must be complete, or in the order of the legacy default stream. */
flute_status flute_matrix_create(flute_device device, flute_dtype dtype, const flute_packed_view* const* segments,
                                 int32_t segment_count, flute_threads* threads, flute_matrix** matrix);
void flute_matrix_destroy(flute_matrix* matrix);

typedef struct flute_matrix_info {
  size_t size; /* sizeof(flute_matrix_info) */
  int64_t n, k, group_size;
  int32_t bits;
  int32_t segment_count;
  flute_device device;
  size_t bytes; /* held on the device */
} flute_matrix_info;

/* Fills *info, whose `size` is set. */
flute_status flute_matrix_get_info(const flute_matrix* matrix, flute_matrix_info* info);

/* Segment `segment` (0 .. segment_count-1) in the packed layout again, in host memory: codes and codebook exactly, and
 * the CPU's scales too. CUDA gives the scales that it holds, of the matrix's dtype: the same values where they were
 * given in that dtype. */
flute_status flute_matrix_to_packed(const flute_matrix* matrix, int32_t segment, flute_packed** packed);

typedef struct flute_gemm_args {
  size_t size;            /* sizeof(flute_gemm_args) */
  int64_t m;              /* tokens; 0 does nothing */
  const void* x;          /* [m, k] of `dtype` */
  int64_t ldx;            /* elements from row to row of x, >= k; 0 means k */
  void* y;                /* [m, n] of `dtype`; must not overlap x */
  int64_t ldy;            /* elements from row to row of y, >= n; 0 means n */
  const void* bias;       /* [n] of `dtype`, or NULL */
  flute_dtype dtype;      /* of x, y and bias */
  int32_t flags;          /* a sum of FLUTE_NO_DEPENDENT_LAUNCH and FLUTE_POINTERS_KNOWN, or 0 */
  flute_threads* threads; /* CPU */
  void* stream;           /* CUDA: a cudaStream_t; the call is asynchronous on it */
  void* workspace;        /* CUDA: see flute_workspace_init; never for two streams at a time */
  size_t workspace_bytes;
} flute_gemm_args;

enum {
  /* CUDA, compute capability 9.0 and later: a multiply starts while the stream's previous kernel is ending
   * (programmatic dependent launch) and fetches weights meanwhile; x, y, bias and workspace are not touched before it
   * has ended. This flag switches that off. */
  FLUTE_NO_DEPENDENT_LAUNCH = 1,
  /* CUDA: the caller knows that all pointers are memory of the matrix's device, and they are not looked up, which takes
   * a microsecond or two. A wrong one is then a fault on the device, not an error that is returned. */
  FLUTE_POINTERS_KNOWN = 2
};

/* Y = X * W^T (+ bias) on the matrix's device, for any m >= 0. Table and scale are rounded to `dtype`, sums are fp32
 * and rounded once. The same call gives the same bits, whatever the number of threads.
 * CUDA: x, y and bias lie in device or managed memory of the matrix's device. x must be 16-byte aligned and ldx a
 * multiple of 8, for any m; y and bias only aligned to their elements. The call neither allocates nor synchronises and
 * may be captured in a graph from the first one on; everything that can be refused is, with a message, before anything
 * is launched. */
flute_status flute_gemm(const flute_matrix* matrix, const flute_gemm_args* args);

/* Bytes of workspace that flute_gemm needs for m tokens: a pure function; 0 on the CPU. */
flute_status flute_gemm_workspace_bytes(const flute_matrix* matrix, int64_t m, flute_dtype dtype, size_t* bytes);

/* Makes a workspace of the device ready, once, before its first use; every multiply leaves it ready. Asynchronous on
 * `stream`. The CPU needs none: nothing is done there. */
flute_status flute_workspace_init(flute_device device, void* workspace, size_t bytes, void* stream);

/* ------------------------------------------------------------------------- CUDA matrices in the caller's own memory */

/* What flute_matrix_create holds on a CUDA device, as three buffers of device memory that stays its owner's (a
 * framework's tensors, say): 1 to 4 matrices stacked along n, tiled. Buffers are 16-byte aligned. */
typedef struct flute_tiled_view {
  size_t size;             /* sizeof(flute_tiled_view) */
  int64_t k;               /* input features */
  int64_t group_size;      /* 32, 64, 128, 256 or -1 */
  int64_t segment_rows[4]; /* output features of each; multiples of 32 but for the last */
  int32_t segment_count;   /* 1..4 */
  int32_t bits;            /* 2, 3, 4 */
  flute_dtype dtype;       /* FLUTE_F16 or FLUTE_BF16: of scales and codebooks, and of the activations */
  int32_t device;          /* CUDA's number */
  void* codes;
  void* scales;
  void* codebooks; /* [segment_count, 2^bits] */
} flute_tiled_view;

/* Bytes of each buffer, padding included: a pure function of the sizes and the dtype. */
flute_status flute_tiled_bytes(const flute_tiled_view* matrix, size_t* codes, size_t* scales, size_t* codebooks);

/* Fills the buffers from packed matrices of these sizes, which lie where flute_matrix_create takes them from, and loads
 * the kernels. `codes` may be NULL, or both `scales` and `codebooks`: that part is left as it is. In the order of
 * `stream` (a cudaStream_t), which it waits for. */
flute_status flute_tile(const flute_tiled_view* matrix, const flute_packed_view* const* segments, int32_t segment_count,
                        void* stream);

/* The codes of a segment as they were packed, to codes[rows, k * bits / 32] in device memory. Asynchronous. */
flute_status flute_untile(const flute_tiled_view* matrix, int32_t segment, uint32_t* codes, void* stream);

/* The matrix that the codes stand for, bit for bit what flute_tiled_gemm multiplies with, to out[n, k] of its dtype in
 * device memory, 16-byte aligned. Asynchronous. */
flute_status flute_tiled_dequantize(const flute_tiled_view* matrix, void* out, void* stream);

/* flute_gemm with such a matrix, to the same bits, and it needs no workspace. The first call may be captured in a graph
 * where this process has called flute_tile for a matrix of these sizes and dtype; otherwise it loads kernels. */
flute_status flute_tiled_gemm(const flute_tiled_view* matrix, const flute_gemm_args* args);

/* ------------------------------------------------------------------------------------------------------ checkpoints */

/* An opened checkpoint folder or .safetensors file; memory-mapped. */
typedef struct flute_checkpoint flute_checkpoint;

/* Opens and checks a checkpoint (UTF-8 path). One without quantized layers opens, too, and has a layer count of 0. */
flute_status flute_checkpoint_open(const char* path, flute_checkpoint** checkpoint);
void flute_checkpoint_destroy(flute_checkpoint* checkpoint);

/* Its quantized layers, in file order; 0 for NULL. */
int64_t flute_checkpoint_layer_count(const flute_checkpoint* checkpoint);
/* The name of layer `index`, such as "model.layers.0.mlp.down_proj"; NULL when out of range. Valid until
 * flute_checkpoint_destroy. */
const char* flute_checkpoint_layer_name(const flute_checkpoint* checkpoint, int64_t index);

/* Points *view, whose `size` is set, at the buffers of the layer named `layer`; valid until flute_checkpoint_destroy.
 */
flute_status flute_checkpoint_get_layer(const flute_checkpoint* checkpoint, const char* layer, flute_packed_view* view);

/* flute_matrix_create of 1 to 4 layers by name. The matrix does not need the checkpoint afterwards. */
flute_status flute_checkpoint_load_matrix(const flute_checkpoint* checkpoint, flute_device device, flute_dtype dtype,
                                          const char* const* layers, int32_t layer_count, flute_threads* threads,
                                          flute_matrix** matrix);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* FLUTE_FLUTE_H_ */
