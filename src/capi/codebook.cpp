// Codebooks and packing of the C ABI.
#include "flute/codebook.hpp"

#include "capi/guard.hpp"
#include "flute/quantize.hpp"
#include "io/checkpoint.hpp"

using namespace flute;        // NOLINT(google-build-using-namespace): this file only translates
using namespace flute::capi;  // NOLINT(google-build-using-namespace)

namespace {

void require_bits(int32_t bits) {
  if (bits < 1 || bits > 8) fail(ErrorCode::kInvalidArgument, "bits: expected 1..8, found {}", bits);
}

// Words that `count` codes fill.
size_t words_of(int64_t count, int32_t bits) {
  require_bits(bits);
  if (count < 0 || count % 32 != 0) {
    fail(ErrorCode::kInvalidArgument, "count: expected a multiple of 32, found {}", count);
  }
  return static_cast<size_t>(count / 32) * static_cast<size_t>(bits);
}

}  // namespace

extern "C" {

flute_status flute_codebook_named(const char* name, int32_t bits, float* values, float* max_magnitude) {
  return guard(__func__, [&] {
    require(name, "name");
    require(values, "values");
    const Codebook codebook = named_codebook(name, bits);
    std::copy(codebook.values.begin(), codebook.values.end(), values);
    if (max_magnitude != nullptr) *max_magnitude = codebook_max_magnitude(codebook, std::string_view(name) == "int");
  });
}

flute_status flute_codebook_read(const char* path, int32_t* bits, float* values, size_t capacity) {
  return guard(__func__, [&] {
    require(path, "path");
    require(bits, "bits");
    require(values, "values");
    const Codebook codebook = io::read_codebook_file(path);
    if (codebook.values.size() > capacity) {
      fail(ErrorCode::kInvalidArgument, "capacity: expected room for {} values of '{}', found {}",
           codebook.values.size(), path, capacity);
    }
    *bits = codebook.bits;
    std::copy(codebook.values.begin(), codebook.values.end(), values);
  });
}

flute_status flute_codebook_fit_kmeans(const void* weight, flute_dtype dtype, int64_t n, int64_t k, int32_t bits,
                                       int64_t group_size, flute_threads* threads, float* values) {
  return guard(__func__, [&] {
    require(weight, "weight");
    require(values, "values");
    const Codebook codebook =
        fit_kmeans_codebook(weight, to_dtype(dtype, "dtype"), n, k, bits, group_size, to_pool(threads));
    std::copy(codebook.values.begin(), codebook.values.end(), values);
  });
}

flute_status flute_pack_codes(const uint8_t* codes, int64_t count, int32_t bits, uint32_t* words) {
  return guard(__func__, [&] {
    const size_t word_count = words_of(count, bits);
    if (count == 0) return;
    require(codes, "codes");
    require(words, "words");
    pack_codes({codes, static_cast<size_t>(count)}, bits, {words, word_count});
  });
}

flute_status flute_unpack_codes(const uint32_t* words, int64_t count, int32_t bits, uint8_t* codes) {
  return guard(__func__, [&] {
    const size_t word_count = words_of(count, bits);
    if (count == 0) return;
    require(words, "words");
    require(codes, "codes");
    unpack_codes({words, word_count}, bits, {codes, static_cast<size_t>(count)});
  });
}

}  // extern "C"
