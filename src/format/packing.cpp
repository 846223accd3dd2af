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
uint64_t gather(uint64_t x) {
  x = (x & comb(bits, 16)) | ((x >> (8 - bits)) & (comb(bits, 16) << bits));
  x = (x & comb(2 * bits, 32)) | ((x >> (16 - 2 * bits)) & (comb(2 * bits, 32) << 2 * bits));
  return (x & 0xffffffffu) | ((x >> 32) << 4 * bits);
}

template <int bits>
uint64_t spread(uint64_t x) {
  constexpr uint64_t kQuadruple = (uint64_t{1} << 4 * bits) - 1;
  x = (x & kQuadruple) | ((x >> 4 * bits & kQuadruple) << 32);
  x = (x & comb(2 * bits, 32)) | ((x & (comb(2 * bits, 32) << 2 * bits)) << (16 - 2 * bits));
  return (x & comb(bits, 16)) | ((x & (comb(bits, 16) << bits)) << (8 - bits));
}

// Eight bytes of the stream are moved at once where it has as many left: what is written too much is written again,
// what is read too much is masked. Only its end takes moves of `bits` bytes.
template <int bits>
void pack(const uint8_t* codes, size_t count, std::byte* stream) {
  const size_t whole = count / 8 * bits;
  for (size_t i = 0, at = 0; i < count; i += 8, at += bits) {
    uint64_t x;
    std::memcpy(&x, codes + i, 8);
    x = gather<bits>(x);
    if (at + 8 <= whole) {
      std::memcpy(stream + at, &x, 8);
    } else {
      std::memcpy(stream + at, &x, bits);
    }
  }
}

template <int bits>
void unpack(const std::byte* stream, size_t count, uint8_t* codes) {
  const size_t whole = count / 8 * bits;
  for (size_t i = 0, at = 0; i < count; i += 8, at += bits) {
    uint64_t x = 0;
    if (at + 8 <= whole) {
      std::memcpy(&x, stream + at, 8);
    } else {
      std::memcpy(&x, stream + at, bits);
    }
    x = spread<bits>(x);
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
