// Threads, matrices and the multiply of the C ABI.
#include "flute/gemm.hpp"

#include <vector>

#include "capi/guard.hpp"

using namespace flute;        // NOLINT(google-build-using-namespace): this file only translates
using namespace flute::capi;  // NOLINT(google-build-using-namespace)

extern "C" {

flute_status flute_threads_create(int32_t count, flute_threads** threads) {
  return guard(__func__, [&] {
    require(threads, "threads");
    constexpr int32_t kMostThreads = 4096;  // more is a mistake, not a machine
    if (count < 0 || count > kMostThreads) {
      fail(ErrorCode::kInvalidArgument, "count: expected 0..{}, found {}", kMostThreads, count);
    }
    *threads = new flute_threads{ThreadPool(count)};
  });
}

void flute_threads_destroy(flute_threads* threads) { delete threads; }

int32_t flute_threads_size(const flute_threads* threads) { return threads == nullptr ? 1 : threads->pool.size(); }

flute_status flute_matrix_create(flute_device device, flute_dtype dtype, const flute_packed_view* const* segments,
                                 int32_t segment_count, flute_threads* threads, flute_matrix** matrix) {
  return guard(__func__, [&] {
    require(matrix, "matrix");
    const std::vector<PackedView> views = to_segments(segments, segment_count);
    *matrix = make_handle<flute_matrix>(
        Matrix::from_packed(to_device(device), views, {to_dtype(dtype, "dtype"), to_pool(threads)}));
  });
}

void flute_matrix_destroy(flute_matrix* matrix) { delete matrix; }

flute_status flute_matrix_get_info(const flute_matrix* matrix, flute_matrix_info* info) {
  return guard(__func__, [&] {
    require(matrix, "matrix");
    require_size(info, "info");
    const Matrix& source = matrix->matrix;
    flute_matrix_info result = {};
    result.n = source.n();
    result.k = source.k();
    result.group_size = source.group_size();
    result.bits = source.bits();
    result.segment_count = source.segment_count();
    result.device = {static_cast<int32_t>(source.device().kind), source.device().index};
    result.bytes = source.bytes();
    write_struct(result, info);
  });
}

flute_status flute_matrix_to_packed(const flute_matrix* matrix, int32_t segment, flute_packed** packed) {
  return guard(__func__, [&] {
    require(matrix, "matrix");
    require(packed, "packed");
    const int count = matrix->matrix.segment_count();
    if (segment < 0 || segment >= count) {
      fail(ErrorCode::kInvalidArgument, "segment: expected 0..{}, found {}", count - 1, segment);
    }
    *packed = make_handle<flute_packed>(matrix->matrix.to_packed(segment));
  });
}

flute_status flute_gemm(const flute_matrix* matrix, const flute_gemm_args* given) {
  return guard(__func__, [&] {
    require(matrix, "matrix");
    const Call call = to_call(given);
    gemm(matrix->matrix, call.args, call.execution);
  });
}

flute_status flute_gemm_workspace_bytes(const flute_matrix* matrix, int64_t m, flute_dtype dtype, size_t* bytes) {
  return guard(__func__, [&] {
    require(matrix, "matrix");
    require(bytes, "bytes");
    *bytes = gemm_workspace_bytes(matrix->matrix, m, to_dtype(dtype, "dtype"));
  });
}

flute_status flute_workspace_init(flute_device device, void* workspace, size_t bytes, void* stream) {
  return guard(__func__, [&] {
    if (bytes > 0) require(workspace, "workspace");
    workspace_init(to_device(device), workspace, bytes, stream);
  });
}

}  // extern "C"
