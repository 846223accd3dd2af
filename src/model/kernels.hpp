#pragma once
#include <cstdint>

namespace flute::model {

// What a block computes besides its multiplies: vector code for one row or one tile, called from any thread. Sums run
// in an order that depends on the machine's vector width alone.

/// y = x / sqrt(mean(x^2) + epsilon) * weight. y may be x.
void rms_norm(const float* x, const float* weight, float epsilon, int64_t n, float* y);
/// x += y.
void add(float* x, const float* y, int64_t n);
/// y = silu(gate) * up. y may be gate.
void silu_multiply(const float* gate, const float* up, int64_t n, float* y);
/// y = gelu(gate) * up, with the tanh approximation of GELU. y may be gate.
void gelu_multiply(const float* gate, const float* up, int64_t n, float* y);
/// x = cap * tanh(x / cap).
void soft_cap(float* x, int64_t n, float cap);
/// log(sum(exp(x))); n >= 1.
double log_sum_exp(const float* x, int64_t n);
/// Turns the pairs (x[i], x[i + n/2]) by the angles whose cosines and sines are given, [n/2] each.
void rotate(float* x, const float* cosine, const float* sine, int64_t n);

/// Keys lie in blocks of 16 positions, [head_dim][16] each: a vector of keys' components times one component of a query
/// then adds to as many scores, and no sum runs across a vector. 16 floats are the longest vector there is.
constexpr int64_t kKeyBlock = 16;
/// Queries that share the reading of keys and values. 8 accumulators hide the latency of a fused multiply-add
/// (4 cycles, 2 a cycle) and leave room for the rest in 32 vector registers.
constexpr int kTileRows = 8;

/// A few queries of one key/value head.
struct AttentionTile {
  int rows = 0;                   ///< 1 .. kTileRows
  const float* query[kTileRows];  ///< [head_dim]
  int64_t begin[kTileRows];       ///< first position that the row sees
  int64_t end[kTileRows];         ///< one past the last; end > begin
  float* out[kTileRows];          ///< [head_dim]
  const float* keys = nullptr;    ///< [blocks, head_dim, kKeyBlock]
  const float* values = nullptr;  ///< [positions, value_stride]
  int64_t head_dim = 0;
  int64_t value_stride = 0;  ///< head_dim rounded up to a multiple of 16, zeros behind head_dim
  float scale = 1;           ///< multiplies the scores
  float soft_cap = 0;        ///< 0: none
  float* scratch = nullptr;  ///< attention_scratch() floats
};
int64_t attention_scratch(int64_t positions, int64_t value_stride);
/// out = softmax(soft-capped query . keys * scale) . values, each row over the positions it sees.
void attend(const AttentionTile& tile);

}  // namespace flute::model
