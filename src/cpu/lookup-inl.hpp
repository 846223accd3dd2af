// Codes out of their words and values out of a codebook, for one instruction set. Included once for each by kernel
// files.
#if defined(FLUTE_CPU_LOOKUP_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FLUTE_CPU_LOOKUP_INL
#undef FLUTE_CPU_LOOKUP_INL
#else
#define FLUTE_CPU_LOOKUP_INL
#endif

#include <hwy/highway.h>

#include "cpu/kernels.hpp"

HWY_BEFORE_NAMESPACE();
namespace flute::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, kBlockRows>;
using Words = hn::RebindToUnsigned<Floats>;
using Ints = hn::RebindToSigned<Floats>;
using F = hn::Vec<Floats>;
using U = hn::Vec<Words>;
constexpr int64_t kLanes = hn::MaxLanes(Floats());
constexpr int64_t kVectors = kBlockRows / kLanes;  ///< that hold a block's rows

/// Code `J` of a chunk in the low bits of each lane, with bits of its neighbours above. One that begins with a byte is
/// loaded from there instead of shifted down: the ports of shifts, permutes and multiply-adds are what limits decoding,
/// those of loads are not, even where a load crosses a cache line.
template <int kBits, int J>
HWY_INLINE U code_at(const uint32_t* words) {
  constexpr int kBegin = J * kBits, kWord = kBegin / 32, kShift = kBegin % 32;
  const Words d;
  const uint32_t* word = words + kWord * kBlockRows;
  if constexpr (kShift + kBits > 32) {
    return hn::Or(hn::ShiftRight<kShift>(hn::LoadU(d, word)),
                  hn::ShiftLeft<32 - kShift>(hn::LoadU(d, word + kBlockRows)));
  } else if constexpr (kShift == 0) {
    return hn::LoadU(d, word);
  } else if constexpr (kShift % 8 == 0 && kLanes > 1) {
    return hn::LoadU(d, reinterpret_cast<const uint32_t*>(reinterpret_cast<const std::byte*>(word) + kShift / 8));
  } else {
    return hn::ShiftRight<kShift>(hn::LoadU(d, word));
  }
}

/// The same for a code known at run time.
template <int kBits>
HWY_INLINE U code_at(const uint32_t* words, int code) {
  const Words d;
  const int word = code * kBits / 32, shift = code * kBits % 32;
  const U low = hn::ShiftRightSame(hn::LoadU(d, words + word * kBlockRows), shift);
  if (shift + kBits <= 32) return low;
  return hn::Or(low, hn::ShiftLeftSame(hn::LoadU(d, words + (word + 1) * kBlockRows), 32 - shift));
}

/// Values of a table by gathering: any number of bits, any instruction set, a table for each row or one for all.
template <int kBits, bool kPerRow>
struct Gather {
  explicit HWY_INLINE Gather(const float* values) : table(values) {}
  HWY_INLINE F operator()(U codes) const {
    const Ints d;
    auto index = hn::BitCast(d, hn::And(codes, hn::Set(Words(), (1u << kBits) - 1)));
    if constexpr (kPerRow) index = hn::Add(hn::ShiftLeft<4>(index), hn::Iota(d, 0));
    return hn::GatherIndex(Floats(), table, index);
  }
  const float* table;
};

/// Looks up a table that all rows share by permuting, for up to kPermuteBits. Permutes read the low bits of their index
/// alone, so codes need no masking; a table of fewer entries than a vector has lanes is repeated to fill it.
template <int kBits>
struct Lookup;

/// `values` repeated to `count` entries.
template <int kBits>
HWY_INLINE void repeat_table(const float* values, int count, float* repeated) {
  for (int i = 0; i < count; ++i) repeated[i] = values[i & ((1 << kBits) - 1)];
}

#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
constexpr int kPermuteBits = 6;
template <int kBits>
requires(kBits <= 4) struct Lookup<kBits> {
  explicit HWY_INLINE Lookup(const float* values) {
    alignas(64) float repeated[16];
    repeat_table<kBits>(values, 16, repeated);
    table = _mm512_load_ps(repeated);
  }
  explicit HWY_INLINE Lookup(F values) : table(values.raw) {}
  HWY_INLINE F operator()(U codes) const { return F{_mm512_permutexvar_ps(codes.raw, table)}; }
  __m512 table;
};
template <>
struct Lookup<5> {
  explicit HWY_INLINE Lookup(const float* values) : low(_mm512_loadu_ps(values)), high(_mm512_loadu_ps(values + 16)) {}
  HWY_INLINE F operator()(U codes) const { return F{_mm512_permutex2var_ps(low, codes.raw, high)}; }
  __m512 low, high;
};
template <>
struct Lookup<6> {
  explicit HWY_INLINE Lookup(const float* values) : low(values), high(values + 32) {}
  HWY_INLINE F operator()(U codes) const {
    const __mmask16 upper = _mm512_test_epi32_mask(codes.raw, _mm512_set1_epi32(32));
    return F{_mm512_mask_blend_ps(upper, low(codes).raw, high(codes).raw)};
  }
  Lookup<5> low, high;
};
#elif HWY_TARGET == HWY_AVX2
constexpr int kPermuteBits = 4;
template <int kBits>
requires(kBits <= 3) struct Lookup<kBits> {
  explicit HWY_INLINE Lookup(const float* values) {
    alignas(32) float repeated[8];
    repeat_table<kBits>(values, 8, repeated);
    table = _mm256_load_ps(repeated);
  }
  HWY_INLINE F operator()(U codes) const { return F{_mm256_permutevar8x32_ps(table, codes.raw)}; }
  __m256 table;
};
template <>
struct Lookup<4> {
  explicit HWY_INLINE Lookup(const float* values) : low(_mm256_loadu_ps(values)), high(_mm256_loadu_ps(values + 8)) {}
  HWY_INLINE F operator()(U codes) const {
    const __m256 sign = _mm256_castsi256_ps(_mm256_slli_epi32(codes.raw, 28));  // bit 3 chooses the half
    return F{
        _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes.raw), _mm256_permutevar8x32_ps(high, codes.raw), sign)};
  }
  __m256 low, high;
};
#else
constexpr int kPermuteBits = 0;
#endif

/// Sixteen-bit or 32-bit numbers as floats.
HWY_INLINE F load_floats(const void* data, DType dtype, int64_t index) {
  const Floats d;
  if (dtype == DType::kF32) return hn::LoadU(d, static_cast<const float*>(data) + index);
  if (dtype == DType::kBF16) {
    const hn::Rebind<uint16_t, Floats> d16;
    const auto bits = hn::LoadU(d16, static_cast<const uint16_t*>(data) + index);
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(Words(), bits)));
  }
  const hn::Rebind<hwy::float16_t, Floats> d16;
  const hn::Rebind<uint16_t, Floats> bits;
  return hn::PromoteTo(d, hn::BitCast(d16, hn::LoadU(bits, static_cast<const uint16_t*>(data) + index)));
}

}  // namespace HWY_NAMESPACE
}  // namespace flute::cpu
HWY_AFTER_NAMESPACE();
#endif  // per target
