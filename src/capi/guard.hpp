#pragma once
#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <string_view>
#include <vector>

#include "base/fail.hpp"
#include "flute/flute.h"
#include "flute/gemm.hpp"
#include "flute/packed.hpp"
#include "flute/threads.hpp"

/// What every function of the C ABI needs: no exception crosses, no null is dereferenced, structs of any age are read.

struct flute_threads {
  flute::ThreadPool pool;
};

struct flute_packed {
  flute::PackedMatrix matrix;
};

struct flute_matrix {
  flute::Matrix matrix;
};

namespace flute::capi {

/// Remembers the message for flute_last_error_message and returns `status`.
flute_status record_error(flute_status status, std::string_view function, std::string_view message) noexcept;

/// Runs `body`; whatever it throws becomes a status and a message that starts with `function`.
template <typename Body>
flute_status guard(std::string_view function, Body&& body) noexcept {
  try {
    body();
    return FLUTE_OK;
  } catch (const Error& error) {
    return record_error(static_cast<flute_status>(error.code()), function, error.what());
  } catch (const std::bad_alloc&) {
    return record_error(FLUTE_OUT_OF_MEMORY, function, "out of memory");
  } catch (const std::exception& error) {
    return record_error(FLUTE_INTERNAL, function, error.what());
  } catch (...) {
    return record_error(FLUTE_INTERNAL, function, "unknown exception");
  }
}

template <typename Pointer>
void require(Pointer pointer, std::string_view argument) {
  if (pointer == nullptr) fail(ErrorCode::kInvalidArgument, "{}: expected a pointer, found NULL", argument);
}

/// Structs of version 1 have all fields; a later version that appends some lowers the bound to its predecessor's size.
template <typename Struct>
void require_size(const Struct* given, std::string_view argument) {
  require(given, argument);
  if (given->size < sizeof(Struct)) {
    fail(ErrorCode::kInvalidArgument, "{}: expected size {}, found {}", argument, sizeof(Struct), given->size);
  }
}

/// A caller's struct, checked. A newer caller's may be longer: what this version does not know must be zero.
template <typename Struct>
Struct read_struct(const Struct* given, std::string_view argument) {
  require_size(given, argument);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  if (!std::all_of(bytes + sizeof(Struct), bytes + given->size, [](unsigned char byte) { return byte == 0; })) {
    fail(ErrorCode::kUnsupported, "{}: fields beyond its first {} bytes are set, which this version does not know",
         argument, sizeof(Struct));
  }
  return *given;
}

/// Fills a caller's struct, of which `size` stays as the caller set it.
template <typename Struct>
void write_struct(Struct value, Struct* target) {
  value.size = target->size;
  *target = value;
}

/// The C++ value of an ABI enumeration; throws naming `argument`.
DType to_dtype(flute_dtype dtype, std::string_view argument);
Device to_device(flute_device device);
ThreadPool* to_pool(flute_threads* threads);

/// What a caller wants multiplied, and with what.
struct Call {
  GemmArgs args;
  Execution execution;
};
Call to_call(const flute_gemm_args* given);

/// A caller's packed matrix with its sizes checked.
PackedView to_packed_view(const flute_packed_view* given, std::string_view argument);
/// 1 to 4 of them.
std::vector<PackedView> to_segments(const flute_packed_view* const* segments, int32_t segment_count);
/// The reverse of to_packed_view; `size` is left to write_struct.
flute_packed_view from_packed_view(const PackedView& view);

/// values[rows, 2^bits] as a Codebook, checked.
Codebook to_codebook(const float* values, int64_t rows, int bits, std::string_view argument);

/// A handle made by `new Handle{...}` from what `value` is made of.
template <typename Handle, typename Value>
Handle* make_handle(Value&& value) {
  return new Handle{std::forward<Value>(value)};
}

}  // namespace flute::capi
