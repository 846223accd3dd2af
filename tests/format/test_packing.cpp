#include <gtest/gtest.h>

#include <vector>

#include "base/seed.hpp"
#include "flute/error.hpp"
#include "flute/packed.hpp"

namespace flute {
namespace {

// docs/format.md read literally, a bit at a time.
std::vector<uint32_t> pack_bit_by_bit(const std::vector<uint8_t>& codes, int bits) {
  std::vector<uint32_t> words(codes.size() / 32 * bits);
  for (size_t k = 0; k < codes.size(); ++k) {
    for (int b = 0; b < bits; ++b) {
      const size_t position = k * bits + b;
      words[position / 32] |= uint32_t{codes[k] >> b & 1u} << position % 32;
    }
  }
  return words;
}

class Packing : public testing::TestWithParam<int> {};

TEST_P(Packing, FollowsTheBitStream) {
  const int bits = GetParam();
  auto random = fresh_random();
  for (const size_t count : {0, 32, 64, 96, 4096}) {
    std::vector<uint8_t> codes(count);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % (1u << bits));
    std::vector<uint32_t> words(count / 32 * bits);
    pack_codes(codes, bits, words);
    ASSERT_EQ(words, pack_bit_by_bit(codes, bits)) << count;
    std::vector<uint8_t> back(count);
    unpack_codes(words, bits, back);
    ASSERT_EQ(back, codes) << count;
  }
}

INSTANTIATE_TEST_SUITE_P(Bits, Packing, testing::Range(1, 9));

// The layout that compressed-tensors and GPTQ write at 4 bits, as a fixed point outside of our own code.
TEST(PackingExample, FourBitsPutCodeZeroIntoTheLowNibble) {
  std::vector<uint8_t> codes(32);
  for (uint8_t i = 0; i < 32; ++i) codes[i] = i % 16;
  std::vector<uint32_t> words(4);
  pack_codes(codes, 4, words);
  EXPECT_EQ(words, (std::vector<uint32_t>{0x76543210, 0xfedcba98, 0x76543210, 0xfedcba98}));
}

TEST(PackingErrors, NameExpectedAndFound) {
  const auto message = [](size_t codes, int bits, size_t words) -> std::string {
    const std::vector<uint8_t> from(codes);
    std::vector<uint32_t> to(words);
    try {
      pack_codes(from, bits, to);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message(32, 9, 9), "packing: expected bits 1..8, found 9");
  EXPECT_EQ(message(32, 0, 0), "packing: expected bits 1..8, found 0");
  EXPECT_EQ(message(33, 4, 4), "packing: expected a multiple of 32 codes, found 33");
  EXPECT_EQ(message(64, 3, 7), "packing: expected 6 words for 64 codes of 3 bits, found 7");
}

}  // namespace
}  // namespace flute
