// CUDA matrices in the caller's own memory.
#include "flute/tiled.hpp"

#include <algorithm>
#include <vector>

#include "capi/guard.hpp"

using namespace flute;        // NOLINT(google-build-using-namespace): this file only translates
using namespace flute::capi;  // NOLINT(google-build-using-namespace)

namespace {

TiledView to_tiled_view(const flute_tiled_view* given) {
  const flute_tiled_view tiled = read_struct(given, "matrix");
  TiledView view;
  view.k = tiled.k;
  view.bits = tiled.bits;
  view.group_size = tiled.group_size;
  view.dtype = to_dtype(tiled.dtype, "matrix.dtype");
  view.device = tiled.device;
  view.segment_count = tiled.segment_count;
  std::copy(std::begin(tiled.segment_rows), std::end(tiled.segment_rows), view.segment_rows.begin());
  view.codes = tiled.codes;
  view.scales = tiled.scales;
  view.codebooks = tiled.codebooks;
  return view;
}

}  // namespace

extern "C" {

flute_status flute_tiled_bytes(const flute_tiled_view* matrix, size_t* codes, size_t* scales, size_t* codebooks) {
  return guard(__func__, [&] {
    require(codes, "codes");
    require(scales, "scales");
    require(codebooks, "codebooks");
    const TiledBytes bytes = tiled_bytes(to_tiled_view(matrix));
    *codes = bytes.codes;
    *scales = bytes.scales;
    *codebooks = bytes.codebooks;
  });
}

flute_status flute_tile(const flute_tiled_view* matrix, const flute_packed_view* const* segments, int32_t segment_count,
                        void* stream) {
  return guard(__func__, [&] {
    const TiledView view = to_tiled_view(matrix);
    tile(view, to_segments(segments, segment_count), stream);
  });
}

flute_status flute_untile(const flute_tiled_view* matrix, int32_t segment, uint32_t* codes, void* stream) {
  return guard(__func__, [&] { untile(to_tiled_view(matrix), segment, codes, stream); });
}

flute_status flute_tiled_dequantize(const flute_tiled_view* matrix, void* out, void* stream) {
  return guard(__func__, [&] { dequantize(to_tiled_view(matrix), out, stream); });
}

flute_status flute_tiled_gemm(const flute_tiled_view* matrix, const flute_gemm_args* args) {
  return guard(__func__, [&] {
    const Call call = to_call(args);
    gemm(to_tiled_view(matrix), call.args, call.execution);
  });
}

}  // extern "C"
