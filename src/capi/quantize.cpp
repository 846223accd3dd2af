// Packed matrices of the C ABI: quantize and dequantize.
#include "flute/quantize.hpp"

#include <cmath>

#include "capi/guard.hpp"

using namespace flute;        // NOLINT(google-build-using-namespace): this file only translates
using namespace flute::capi;  // NOLINT(google-build-using-namespace)

namespace {

void quantize_with(decltype(quantize_rtn) method, const flute_quantize_args* given, flute_packed** packed) {
  const flute_quantize_args args = read_struct(given, "args");
  require(packed, "packed");
  require(args.weight, "args.weight");
  const int64_t rows = args.codebook_rows == 0 ? 1 : args.codebook_rows;
  if (rows != 1 && rows != args.n) {
    fail(ErrorCode::kInvalidArgument, "args.codebook_rows: expected 1 or n = {}, found {}", args.n, rows);
  }
  const Codebook codebook = to_codebook(args.codebook, rows, args.bits, "args");
  RtnOptions options;
  options.group_size = args.group_size;
  options.scale_dtype = to_dtype(args.scale_dtype, "args.scale_dtype");
  options.max_magnitude = args.max_magnitude == 0 ? codebook_max_magnitude(codebook, false) : args.max_magnitude;
  options.clip = args.clip == 0 ? 1.0f : args.clip;
  *packed = make_handle<flute_packed>(method(args.weight, to_dtype(args.dtype, "args.dtype"), args.n, args.k, codebook,
                                             options, to_pool(args.threads)));
}

}  // namespace

extern "C" {

flute_status flute_quantize_rtn(const flute_quantize_args* args, flute_packed** packed) {
  return guard(__func__, [&] { quantize_with(quantize_rtn, args, packed); });
}

flute_status flute_quantize_mse(const flute_quantize_args* args, flute_packed** packed) {
  return guard(__func__, [&] { quantize_with(quantize_mse, args, packed); });
}

flute_status flute_packed_get_view(const flute_packed* packed, flute_packed_view* view) {
  return guard(__func__, [&] {
    require(packed, "packed");
    require_size(view, "view");
    write_struct(from_packed_view(packed->matrix.view()), view);
  });
}

void flute_packed_destroy(flute_packed* packed) { delete packed; }

flute_status flute_dequantize(const flute_packed_view* view, int64_t row_begin, int64_t row_end, flute_dtype dtype,
                              void* out) {
  return guard(__func__, [&] {
    const PackedView matrix = to_packed_view(view, "view");
    const DType out_dtype = to_dtype(dtype, "dtype");
    if (row_begin < 0 || row_end < row_begin || row_end > matrix.n) {
      fail(ErrorCode::kInvalidArgument, "rows: expected 0 <= row_begin <= row_end <= {}, found [{}, {})", matrix.n,
           row_begin, row_end);
    }
    if (row_begin == row_end) return;
    require(out, "out");
    dequantize_rows(matrix, row_begin, row_end, out_dtype, out);
  });
}

}  // extern "C"
