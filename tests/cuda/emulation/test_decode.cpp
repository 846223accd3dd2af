// Every decode kernel that is built, on the emulated device: numbers against float64, memory, and who waits for whom.
#include "cuda/decode/instances.hpp"
#include "cuda/emulation/decode_case.hpp"

namespace flute::cuda {
namespace {

TEST(EmulatedDecode, Fp16With4Bits) { test_all(4, false, decode_fp16_4); }
TEST(EmulatedDecode, Fp16With3Bits) { test_all(3, false, decode_fp16_3); }
TEST(EmulatedDecode, Fp16With2Bits) { test_all(2, false, decode_fp16_2); }
TEST(EmulatedDecode, Bf16With4Bits) { test_all(4, true, decode_bf16_4); }
TEST(EmulatedDecode, Bf16With3Bits) { test_all(3, true, decode_bf16_3); }
TEST(EmulatedDecode, Bf16With2Bits) { test_all(2, true, decode_bf16_2); }

}  // namespace
}  // namespace flute::cuda
