#include "capi/guard.hpp"

#include <string>

#include "base/checked.hpp"

namespace flute::capi {
namespace {

thread_local std::string last_error;

}  // namespace

flute_status record_error(flute_status status, std::string_view function, std::string_view message) noexcept {
  try {
    last_error = fmt::format("{}: {}", function, message);
  } catch (...) {
    last_error.clear();  // no memory for the message: the status still tells
  }
  return status;
}

DType to_dtype(flute_dtype dtype, std::string_view argument) {
  if (dtype < FLUTE_F32 || dtype > FLUTE_BF16) {
    fail(ErrorCode::kInvalidArgument, "{}: expected FLUTE_F32 (0), FLUTE_F16 (1) or FLUTE_BF16 (2), found {}", argument,
         dtype);
  }
  return static_cast<DType>(dtype);
}

Device to_device(flute_device device) {
  if (device.kind != FLUTE_CPU && device.kind != FLUTE_CUDA) {
    fail(ErrorCode::kInvalidArgument, "device: expected kind FLUTE_CPU (0) or FLUTE_CUDA (1), found {}", device.kind);
  }
  return Device{static_cast<Device::Kind>(device.kind), device.index};
}

Call to_call(const flute_gemm_args* given) {
  const flute_gemm_args args = read_struct(given, "args");
  Call call;
  GemmArgs& gemm_args = call.args;
  gemm_args.m = args.m;
  gemm_args.x = args.x;
  gemm_args.ldx = args.ldx;
  gemm_args.y = args.y;
  gemm_args.ldy = args.ldy;
  gemm_args.bias = args.bias;
  gemm_args.dtype = to_dtype(args.dtype, "args.dtype");
  if ((args.flags & ~(FLUTE_NO_DEPENDENT_LAUNCH | FLUTE_POINTERS_KNOWN)) != 0) {
    fail(ErrorCode::kUnsupported,
         "args.flags: expected a sum of FLUTE_NO_DEPENDENT_LAUNCH (1) and FLUTE_POINTERS_KNOWN (2), found {}",
         args.flags);
  }
  Execution& execution = call.execution;
  execution.threads = to_pool(args.threads);
  execution.stream = args.stream;
  execution.workspace = args.workspace;
  execution.workspace_bytes = args.workspace_bytes;
  execution.dependent_launch = (args.flags & FLUTE_NO_DEPENDENT_LAUNCH) == 0;
  execution.look_up_pointers = (args.flags & FLUTE_POINTERS_KNOWN) == 0;
  return call;
}

ThreadPool* to_pool(flute_threads* threads) { return threads == nullptr ? nullptr : &threads->pool; }

namespace {

// The product of sizes that a caller gave, as the length of one of its buffers.
size_t checked_count(std::initializer_list<int64_t> sizes, std::string_view argument, std::string_view field) {
  const auto count = checked_product({sizes.begin(), sizes.size()});
  // Bytes must be countable, too; no element is larger than 4.
  if (!count || !checked_mul(*count, 4)) {
    fail(ErrorCode::kInvalidArgument, "{}.{}: expected a shape that fits in memory, found one that overflows", argument,
         field);
  }
  return static_cast<size_t>(*count);
}

int64_t codebook_entries(int bits, std::string_view argument) {
  if (bits < 1 || bits > 8) fail(ErrorCode::kInvalidArgument, "{}.bits: expected 1..8, found {}", argument, bits);
  return int64_t{1} << bits;
}

}  // namespace

PackedView to_packed_view(const flute_packed_view* given, std::string_view argument) {
  const flute_packed_view packed = read_struct(given, argument);
  const int64_t entries = codebook_entries(packed.bits, argument);
  require(packed.codes, fmt::format("{}.codes", argument));
  require(packed.scales, fmt::format("{}.scales", argument));
  require(packed.codebook, fmt::format("{}.codebook", argument));
  PackedView view;
  view.n = packed.n;
  view.k = packed.k;
  view.bits = packed.bits;
  view.group_size = packed.group_size;
  view.codes = {packed.codes, checked_count({packed.n, packed.k / 32, packed.bits}, argument, "codes")};
  view.scale_dtype = to_dtype(packed.scale_dtype, fmt::format("{}.scale_dtype", argument));
  view.scales = packed.scales;
  view.offsets = packed.offsets;
  view.codebook = {packed.codebook, checked_count({packed.codebook_rows, entries}, argument, "codebook")};
  validate(view, argument, /*check_values=*/false);  // Matrix::from_packed checks them, once
  return view;
}

std::vector<PackedView> to_segments(const flute_packed_view* const* segments, int32_t segment_count) {
  require(segments, "segments");
  if (segment_count < 1 || segment_count > 4) {
    fail(ErrorCode::kInvalidArgument, "segment_count: expected 1..4, found {}", segment_count);
  }
  std::vector<PackedView> views;
  views.reserve(static_cast<size_t>(segment_count));
  for (int32_t i = 0; i < segment_count; ++i) {
    views.push_back(to_packed_view(segments[i], fmt::format("segments[{}]", i)));
  }
  return views;
}

flute_packed_view from_packed_view(const PackedView& view) {
  flute_packed_view packed = {};
  packed.n = view.n;
  packed.k = view.k;
  packed.group_size = view.group_size;
  packed.bits = view.bits;
  packed.scale_dtype = static_cast<flute_dtype>(view.scale_dtype);
  packed.codes = view.codes.data();
  packed.scales = view.scales;
  packed.offsets = view.offsets;
  packed.codebook = view.codebook.data();
  packed.codebook_rows = view.per_row_codebook() ? view.n : 1;
  return packed;
}

Codebook to_codebook(const float* values, int64_t rows, int bits, std::string_view argument) {
  const int64_t entries = codebook_entries(bits, argument);
  require(values, fmt::format("{}.codebook", argument));
  const size_t count = checked_count({rows, entries}, argument, "codebook");
  Codebook codebook;
  codebook.bits = bits;
  codebook.rows = rows;
  codebook.values.assign(values, values + count);
  validate(codebook, fmt::format("{}.codebook", argument));
  return codebook;
}

}  // namespace flute::capi

extern "C" {

const char* flute_version(void) { return FLUTE_VERSION; }

int32_t flute_abi_version(void) { return FLUTE_ABI_VERSION; }

const char* flute_last_error_message(void) { return flute::capi::last_error.c_str(); }

}  // extern "C"
