#include <array>
#include <bit>
#include <cstring>

#include "base/fail.hpp"
#include "flute/packed.hpp"

namespace flute {
namespace {

static_assert(std::endian::native == std::endian::little, "the bit stream of codes is little-endian");

/// A 64-bit pattern: the lowest `ones` bits of every `period` bits set.
constexpr uint64_t comb(int ones, int period) {
  uint64_t pattern = 0;
  for (int start = 0; start < 64; start += period) pattern |= ((uint64_t{1} << ones) - 1) << start;
  return pattern;
}

// Eight codes fill exactly `bits` bytes. They are moved together in three steps: neighbours at a distance of 8 bits,
// then pairs at 16, then quadruples at 32.
template <int bits>
void pack(const uint8_t* codes, size_t count, std::byte* stream) {
  for (size_t i = 0; i < count; i += 8, stream += bits) {
    uint64_t x;
    std::memcpy(&x, codes + i, 8);
    x = (x & comb(bits, 16)) | ((x >> (8 - bits)) & (comb(bits, 16) << bits));
    x = (x & comb(2 * bits, 32)) | ((x >> (16 - 2 * bits)) & (comb(2 * bits, 32) << 2 * bits));
    x = (x & 0xffffffffu) | ((x >> 32) << 4 * bits);
    std::memcpy(stream, &x, bits);
  }
}

template <int bits>
void unpack(const std::byte* stream, size_t count, uint8_t* codes) {
  for (size_t i = 0; i < count; i += 8, stream += bits) {
    uint64_t x = 0;
    std::memcpy(&x, stream, bits);
    x = (x & ((uint64_t{1} << 4 * bits) - 1)) | ((x >> 4 * bits) << 32);
    x = (x & comb(2 * bits, 32)) | ((x & (comb(2 * bits, 32) << 2 * bits)) << (16 - 2 * bits));
    x = (x & comb(bits, 16)) | ((x & (comb(bits, 16) << bits)) << (8 - bits));
    std::memcpy(codes + i, &x, 8);
  }
}

constexpr std::array kPack = {pack<1>, pack<2>, pack<3>, pack<4>, pack<5>, pack<6>, pack<7>, pack<8>};
constexpr std::array kUnpack = {unpack<1>, unpack<2>, unpack<3>, unpack<4>, unpack<5>, unpack<6>, unpack<7>, unpack<8>};

void expect_sizes(size_t codes, int bits, size_t words) {
  if (bits < 1 || bits > 8) fail(ErrorCode::kInvalidArgument, "packing: expected bits 1..8, found {}", bits);
  if (codes % 32 != 0) fail(ErrorCode::kInvalidArgument, "packing: expected a multiple of 32 codes, found {}", codes);
  if (words != codes / 32 * bits) {
    fail(ErrorCode::kInvalidArgument, "packing: expected {} words for {} codes of {} bits, found {}", codes / 32 * bits,
         codes, bits, words);
  }
}

}  // namespace

void pack_codes(std::span<const uint8_t> codes, int bits, std::span<uint32_t> words) {
  expect_sizes(codes.size(), bits, words.size());
  kPack[bits - 1](codes.data(), codes.size(), std::as_writable_bytes(words).data());
}

void unpack_codes(std::span<const uint32_t> words, int bits, std::span<uint8_t> codes) {
  expect_sizes(codes.size(), bits, words.size());
  kUnpack[bits - 1](std::as_bytes(words).data(), codes.size(), codes.data());
}

}  // namespace flute
