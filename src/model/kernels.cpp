#include "model/kernels.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

// Arrays of vectors are what the tiles below are made of, and vectors of unknown length cannot be put in arrays: on
// machines with SVE, NEON runs.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
//
#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace flute::model {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Tag = hn::CappedTag<float, 16>;
using Vector = hn::Vec<Tag>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));
constexpr int kVectors = static_cast<int>(kKeyBlock) / kLanes;  // vectors in 16 floats
// Accumulators that stay in registers beside what is loaded.
constexpr int kAccumulators = HWY_TARGET == HWY_AVX2 || kLanes == 4 ? 12 : 16;

HWY_INLINE Vector load(const float* x) { return hn::LoadU(Tag(), x); }
HWY_INLINE Vector set(float value) { return hn::Set(Tag(), value); }

/// Calls `body(i, count)` for pieces of at most kLanes elements.
template <typename Body>
HWY_INLINE void for_pieces(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, static_cast<int>(n - i));
}

HWY_INLINE Vector load_piece(const float* x, int count, float rest = 0) {
  if (count == kLanes) return load(x);
  HWY_ALIGN float buffer[kLanes];
  for (int i = 0; i < kLanes; ++i) buffer[i] = i < count ? x[i] : rest;
  return hn::Load(Tag(), buffer);
}

HWY_INLINE void store_piece(Vector value, float* y, int count) {
  if (count == kLanes) {
    hn::StoreU(value, Tag(), y);
    return;
  }
  HWY_ALIGN float buffer[kLanes];
  hn::Store(value, Tag(), buffer);
  std::copy_n(buffer, count, y);
}

HWY_INLINE float sum(Vector value) { return hn::GetLane(hn::SumOfLanes(Tag(), value)); }
HWY_INLINE float maximum(Vector value) { return hn::GetLane(hn::MaxOfLanes(Tag(), value)); }

void rms_norm(const float* x, const float* weight, float epsilon, int64_t n, float* y) {
  Vector squares = hn::Zero(Tag());
  for_pieces(n, [&](int64_t i, int count) HWY_ATTR {
    const Vector value = load_piece(x + i, count);
    squares = hn::MulAdd(value, value, squares);
  });
  const Vector factor = set(1.0F / std::sqrt(sum(squares) / static_cast<float>(n) + epsilon));
  for_pieces(n, [&](int64_t i, int count) HWY_ATTR {
    const Vector normed = hn::Mul(load_piece(x + i, count), factor);
    store_piece(hn::Mul(normed, load_piece(weight + i, count)), y + i, count);
  });
}

void add(float* x, const float* y, int64_t n) {
  for_pieces(n, [&](int64_t i, int count) HWY_ATTR {
    store_piece(hn::Add(load_piece(x + i, count), load_piece(y + i, count)), x + i, count);
  });
}

/// x / (1 + exp(-x * 2t)): the sigmoid of 2t. exp overflows beyond 88, where the quotient is 0 to fp32's precision.
HWY_INLINE Vector sigmoid_multiply(Vector x, Vector minus_argument) {
  const Vector power = hn::Exp(Tag(), hn::Min(minus_argument, set(88.0F)));
  return hn::Div(x, hn::Add(set(1.0F), power));
}

void silu_multiply(const float* gate, const float* up, int64_t n, float* y) {
  for_pieces(n, [&](int64_t i, int count) HWY_ATTR {
    const Vector g = load_piece(gate + i, count);
    store_piece(hn::Mul(sigmoid_multiply(g, hn::Neg(g)), load_piece(up + i, count)), y + i, count);
  });
}

void gelu_multiply(const float* gate, const float* up, int64_t n, float* y) {
  // 0.5 (1 + tanh(t)) is the sigmoid of 2t; t = sqrt(2 / pi) (x + 0.044715 x^3).
  constexpr float kFactor = -1.5957691216F;  // -2 sqrt(2 / pi)
  for_pieces(n, [&](int64_t i, int count) HWY_ATTR {
    const Vector g = load_piece(gate + i, count);
    const Vector cubic = hn::MulAdd(hn::Mul(g, g), set(0.044715F), set(1.0F));
    const Vector argument = hn::Mul(hn::Mul(g, cubic), set(kFactor));
    store_piece(hn::Mul(sigmoid_multiply(g, argument), load_piece(up + i, count)), y + i, count);
  });
}

HWY_INLINE Vector cap_scores(Vector x, Vector cap, Vector inverse) {
  return hn::Mul(cap, hn::Tanh(Tag(), hn::Mul(x, inverse)));
}

void soft_cap(float* x, int64_t n, float cap) {
  for_pieces(n, [&](int64_t i, int count) HWY_ATTR {
    store_piece(cap_scores(load_piece(x + i, count), set(cap), set(1.0F / cap)), x + i, count);
  });
}

double log_sum_exp(const float* x, int64_t n) {
  constexpr float kNone = std::numeric_limits<float>::lowest();
  Vector largest = set(kNone);
  for_pieces(n, [&](int64_t i, int count) HWY_ATTR { largest = hn::Max(largest, load_piece(x + i, count, kNone)); });
  const float max = maximum(largest);
  double total = 0;
  constexpr int64_t kPart = 1024;  // fp32 sums stay short
  for (int64_t begin = 0; begin < n; begin += kPart) {
    Vector part = hn::Zero(Tag());
    for_pieces(std::min(kPart, n - begin), [&](int64_t i, int count) HWY_ATTR {
      part = hn::Add(part, hn::Exp(Tag(), hn::Sub(load_piece(x + begin + i, count, kNone), set(max))));
    });
    total += static_cast<double>(sum(part));
  }
  return static_cast<double>(max) + std::log(total);
}

void rotate(float* x, const float* cosine, const float* sine, int64_t n) {
  float* second = x + n / 2;
  for_pieces(n / 2, [&](int64_t i, int count) HWY_ATTR {
    const Vector c = load_piece(cosine + i, count);
    const Vector s = load_piece(sine + i, count);
    const Vector a = load_piece(x + i, count);
    const Vector b = load_piece(second + i, count);
    store_piece(hn::NegMulAdd(b, s, hn::Mul(a, c)), x + i, count);
    store_piece(hn::MulAdd(a, s, hn::Mul(b, c)), second + i, count);
  });
}

/// How many groups of 16 floats a tile of kRows rows holds in registers.
template <int kRows>
constexpr int register_groups() {
  constexpr int kFit = kAccumulators / (kRows * kVectors);
  return kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
}

/// scores[row][block * 16 ...] for kBlocks blocks of keys.
template <int kRows, int kBlocks>
HWY_INLINE void score_blocks(const float* const* query, const float* keys, int64_t head_dim, float* scores,
                             int64_t stride) {
  Vector sums[kRows][kBlocks * kVectors];
  for (auto& row : sums) {
    for (Vector& value : row) value = hn::Zero(Tag());
  }
  const int64_t block_size = head_dim * kKeyBlock;
  for (int64_t d = 0; d < head_dim; ++d) {
    for (int block = 0; block < kBlocks; ++block) {
      for (int v = 0; v < kVectors; ++v) {
        const Vector key = load(keys + block * block_size + d * kKeyBlock + v * kLanes);
        for (int r = 0; r < kRows; ++r) {
          Vector& value = sums[r][block * kVectors + v];
          value = hn::MulAdd(set(query[r][d]), key, value);
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kBlocks * kVectors; ++v) hn::StoreU(sums[r][v], Tag(), scores + r * stride + v * kLanes);
  }
}

/// out[row][group * 16 ...] = sum over positions of scores[row][position] * values[position][group * 16 ...].
template <int kRows, int kGroups>
HWY_INLINE void weigh_values(const float* scores, int64_t stride, const float* values, int64_t value_stride,
                             int64_t positions, float* out) {
  Vector sums[kRows][kGroups * kVectors];
  for (auto& row : sums) {
    for (Vector& value : row) value = hn::Zero(Tag());
  }
  for (int64_t p = 0; p < positions; ++p) {
    for (int v = 0; v < kGroups * kVectors; ++v) {
      const Vector value = load(values + p * value_stride + v * kLanes);
      for (int r = 0; r < kRows; ++r) sums[r][v] = hn::MulAdd(set(scores[r * stride + p]), value, sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kGroups * kVectors; ++v) hn::StoreU(sums[r][v], Tag(), out + r * value_stride + v * kLanes);
  }
}

/// Rows [row, row + kRows) of a tile: scores[kRows, blocks * 16] of all blocks.
template <int kRows>
void score_rows(const AttentionTile& tile, int row, int64_t first_block, int64_t blocks, float* scores) {
  constexpr int kStep = register_groups<kRows>();
  const int64_t stride = blocks * kKeyBlock;
  const int64_t block_size = tile.head_dim * kKeyBlock;
  const float* keys = tile.keys + first_block * block_size;
  int64_t block = 0;
  for (; block + kStep <= blocks; block += kStep) {
    score_blocks<kRows, kStep>(tile.query + row, keys + block * block_size, tile.head_dim, scores + block * kKeyBlock,
                               stride);
  }
  for (; block < blocks; ++block) {
    score_blocks<kRows, 1>(tile.query + row, keys + block * block_size, tile.head_dim, scores + block * kKeyBlock,
                           stride);
  }
}

template <int kRows>
void weigh_rows(const AttentionTile& tile, const float* scores, int64_t stride, int64_t first, int64_t positions,
                float* out) {
  constexpr int kStep = register_groups<kRows>();
  const int64_t groups = tile.value_stride / kKeyBlock;
  const float* values = tile.values + first * tile.value_stride;
  int64_t group = 0;
  for (; group + kStep <= groups; group += kStep) {
    weigh_values<kRows, kStep>(scores, stride, values + group * kKeyBlock, tile.value_stride, positions,
                               out + group * kKeyBlock);
  }
  for (; group < groups; ++group) {
    weigh_values<kRows, 1>(scores, stride, values + group * kKeyBlock, tile.value_stride, positions,
                           out + group * kKeyBlock);
  }
}

/// Turns a row of scores into exp(score - largest), zero outside [begin, end); returns their sum.
float exponentials(float* scores, int64_t count, int64_t begin, int64_t end, float scale, float cap) {
  const int64_t stop = (end + kLanes - 1) / kLanes * kLanes;  // `count` is a multiple of 16
  for (int64_t i = 0; i < stop; i += kLanes) {
    Vector value = hn::Mul(load(scores + i), set(scale));
    if (cap > 0) value = cap_scores(value, set(cap), set(1.0F / cap));
    hn::StoreU(value, Tag(), scores + i);
  }
  constexpr float kNone = std::numeric_limits<float>::lowest();
  std::fill(scores, scores + begin, kNone);
  std::fill(scores + end, scores + stop, kNone);
  Vector largest = set(kNone);
  for (int64_t i = 0; i < stop; i += kLanes) largest = hn::Max(largest, load(scores + i));
  const Vector max = set(maximum(largest));
  Vector total = hn::Zero(Tag());
  for (int64_t i = 0; i < stop; i += kLanes) {
    const Vector value = hn::Exp(Tag(), hn::Sub(load(scores + i), max));
    total = hn::Add(total, value);
    hn::StoreU(value, Tag(), scores + i);
  }
  std::fill(scores + stop, scores + count, 0.0F);
  return sum(total);
}

template <int kRows>
void attend_rows(const AttentionTile& tile, int row) {
  const int64_t first_block = *std::min_element(tile.begin + row, tile.begin + row + kRows) / kKeyBlock;
  const int64_t end = *std::max_element(tile.end + row, tile.end + row + kRows);
  const int64_t blocks = (end + kKeyBlock - 1) / kKeyBlock - first_block;
  const int64_t stride = blocks * kKeyBlock;
  const int64_t first = first_block * kKeyBlock;
  float* out = tile.scratch;
  float* scores = out + kTileRows * tile.value_stride;
  score_rows<kRows>(tile, row, first_block, blocks, scores);
  float factors[kRows];
  for (int r = 0; r < kRows; ++r) {
    factors[r] = 1.0F / exponentials(scores + r * stride, stride, tile.begin[row + r] - first,
                                     tile.end[row + r] - first, tile.scale, tile.soft_cap);
  }
  weigh_rows<kRows>(tile, scores, stride, first, end - first, out);
  for (int r = 0; r < kRows; ++r) {
    for (int64_t d = 0; d < tile.head_dim; ++d) tile.out[row + r][d] = out[r * tile.value_stride + d] * factors[r];
  }
}

void attend(const AttentionTile& tile) {
  // With 16 registers, or vectors of 4, more than 4 rows spill.
  constexpr int kMost = kAccumulators == 16 ? kTileRows : 4;
  for (int row = 0; row < tile.rows;) {
    const int rows = std::min(tile.rows - row, kMost);
    switch (rows) {
      case 1:
        attend_rows<1>(tile, row);
        break;
      case 2:
        attend_rows<2>(tile, row);
        break;
      case 3:
        attend_rows<3>(tile, row);
        break;
      case 4:
        attend_rows<4>(tile, row);
        break;
      case 5:
        attend_rows<std::min(5, kMost)>(tile, row);
        break;
      case 6:
        attend_rows<std::min(6, kMost)>(tile, row);
        break;
      case 7:
        attend_rows<std::min(7, kMost)>(tile, row);
        break;
      default:
        attend_rows<kMost>(tile, row);
        break;
    }
    row += rows;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flute::model
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flute::model {

HWY_EXPORT(rms_norm);
HWY_EXPORT(add);
HWY_EXPORT(silu_multiply);
HWY_EXPORT(gelu_multiply);
HWY_EXPORT(soft_cap);
HWY_EXPORT(log_sum_exp);
HWY_EXPORT(rotate);
HWY_EXPORT(attend);

void rms_norm(const float* x, const float* weight, float epsilon, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(rms_norm)(x, weight, epsilon, n, y);
}
void add(float* x, const float* y, int64_t n) { HWY_DYNAMIC_DISPATCH(add)(x, y, n); }
void silu_multiply(const float* gate, const float* up, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(silu_multiply)(gate, up, n, y);
}
void gelu_multiply(const float* gate, const float* up, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(gelu_multiply)(gate, up, n, y);
}
void soft_cap(float* x, int64_t n, float cap) { HWY_DYNAMIC_DISPATCH(soft_cap)(x, n, cap); }
double log_sum_exp(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(log_sum_exp)(x, n); }
void rotate(float* x, const float* cosine, const float* sine, int64_t n) {
  HWY_DYNAMIC_DISPATCH(rotate)(x, cosine, sine, n);
}
void attend(const AttentionTile& tile) { HWY_DYNAMIC_DISPATCH(attend)(tile); }

int64_t attention_scratch(int64_t positions, int64_t value_stride) {
  return kTileRows * (value_stride + (positions + 2 * kKeyBlock - 1) / kKeyBlock * kKeyBlock);
}

}  // namespace flute::model
#endif
