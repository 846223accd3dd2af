#include <algorithm>
#include <vector>

#include "backend/arguments.hpp"
#include "cpu/buffer.hpp"
#include "cpu/weights.hpp"
#include "flute/threads.hpp"

namespace flute::cpu {
namespace {

// Up to here weights go from the codes straight into the sums, in two passes of 8 tokens at most; from about here on
// dequantizing a panel once for all tokens costs a token no more (measured: docs/cpu-kernels.md).
constexpr int64_t kDecodeLimit = 16;
// k of a panel: 32 rows x 256 floats are 32 KB, which with a tile of x stay in a 48 KB first-level cache.
constexpr int64_t kPanelChunks = 8;
// Most tokens that share a panel: their part of the packed x (768 KB) and their sums (192 KB) stay in a 2 MB
// second-level cache.
constexpr int64_t kPanelTokens = 768;
// Multiply-adds below which a call stays on its own thread: some 10 us of work, of which handing over half and waiting
// for it would take a part.
constexpr int64_t kAloneLimit = int64_t{1} << 18;

/// At least `count` floats that a thread keeps from call to call (fresh pages for each would cost more than packing
/// itself), aligned so that no vector of a panel lies in two cache lines.
float* grown(Buffer& scratch, int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  if (scratch.bytes() < bytes) scratch = Buffer(bytes);
  return reinterpret_cast<float*>(scratch.data());
}

/// The caller's converted activations, and each thread's panel with its sums.
float* scratch_x(int64_t count) {
  thread_local Buffer scratch;
  return grown(scratch, count);
}

float* scratch_panel(int64_t count) {
  thread_local Buffer scratch;
  return grown(scratch, count);
}

struct Call {
  const Weights& weights;
  const Kernels& set;
  GemmArgs args;  // leading dimensions filled in

  const std::byte* x_row(int64_t token) const {
    return static_cast<const std::byte*>(args.x) + static_cast<size_t>(token * args.ldx) * dtype_size(args.dtype);
  }

  /// Rows of the task for one token: bias, rounding, and into place.
  void store(const Task& task, int64_t token, float* sums) const {
    if (args.bias != nullptr) {
      const auto* bias = static_cast<const std::byte*>(args.bias) + task.row * dtype_size(args.dtype);
      float values[kTaskRows];
      convert_to_f32(bias, args.dtype, values, static_cast<size_t>(task.rows));
      for (int64_t r = 0; r < task.rows; ++r) sums[r] += values[r];
    }
    auto* y =
        static_cast<std::byte*>(args.y) + static_cast<size_t>(token * args.ldy + task.row) * dtype_size(args.dtype);
    convert_from_f32(sums, y, args.dtype, static_cast<size_t>(task.rows));
  }
};

/// Tokens of the next pass over the codes: 8, 4, 2 or 1, rounded up where the rest is 3 or 5 to 7.
int pass_tokens(int64_t left) { return left > 4 ? 8 : left > 2 ? 4 : static_cast<int>(left); }

/// Where to cut `tasks` into runs that threads take as they come: each a part of what is left, down to a single task.
/// Long runs read memory without a break, short ones at the end let all threads finish together.
std::vector<int64_t> run_begins(int64_t tasks, int64_t threads) {
  std::vector<int64_t> begins = {0};
  while (begins.back() < tasks) {
    const int64_t left = tasks - begins.back();
    begins.push_back(begins.back() + std::max<int64_t>(1, left / (2 * threads)));
  }
  return begins;
}

void decode_tokens(const Call& call, ThreadPool* threads) {
  const int64_t k = call.weights.k(), m = call.args.m;
  int64_t padded = 0;
  while (padded < m) padded += pass_tokens(m - padded);
  // One token in fp32 is read where it is. Several are copied to rows a cache line longer than K: rows a multiple of
  // 4 KB apart would share a single set of the first-level cache.
  const bool in_place = call.args.dtype == DType::kF32 && m == 1;
  const int64_t ldx = k + 16;
  float* copy = nullptr;
  if (!in_place) {
    copy = scratch_x(padded * ldx);
    for (int64_t t = 0; t < m; ++t) {
      convert_to_f32(call.x_row(t), call.args.dtype, copy + t * ldx, static_cast<size_t>(k));
    }
    std::fill(copy + m * ldx, copy + padded * ldx, 0.0f);
  }
  const float* x = in_place ? static_cast<const float*>(call.args.x) : copy;
  const auto decode_task = [&call, x, ldx](const Task& task) {
    float sums[kMaxDecodeTokens * kTaskRows];
    for (int64_t begin = 0; begin < call.args.m;) {
      const int tokens = pass_tokens(call.args.m - begin);
      call.weights.decode(call.set, task, call.args.dtype, x + begin * ldx, ldx, tokens, sums);
      for (int t = 0; t < tokens && begin + t < call.args.m; ++t) call.store(task, begin + t, sums + t * kTaskRows);
      begin += tokens;
    }
  };
  const std::span<const Task> tasks = call.weights.tasks();
  const std::vector<int64_t> begins =
      run_begins(static_cast<int64_t>(tasks.size()), threads == nullptr ? 1 : threads->size());
  const auto body = [&](int64_t run) {
    for (int64_t i = begins[run]; i < begins[run + 1]; ++i) decode_task(tasks[i]);
  };
  parallel_for(threads, static_cast<int64_t>(begins.size()) - 1, std::cref(body));
}

/// Tokens [begin, begin + count) as tiles [k / 256][tile][256][tile_tokens], the missing tokens of the last tile zero.
void pack_tokens(const Call& call, int64_t begin, int64_t count, float* packed, ThreadPool* threads) {
  const int64_t k = call.weights.k(), width = call.set.tile_tokens, tiles = (count + width - 1) / width;
  const auto body = [&](int64_t tile) {
    float row[kPanelChunks * kChunk];
    const int64_t first = begin + tile * width;
    for (int64_t k0 = 0; k0 < k; k0 += kPanelChunks * kChunk) {
      const int64_t length = std::min(kPanelChunks * kChunk, k - k0);
      float* target = packed + k0 * tiles * width + tile * length * width;
      for (int64_t t = 0; t < width; ++t) {
        if (first + t < begin + count) {
          convert_to_f32(call.x_row(first + t) + static_cast<size_t>(k0) * dtype_size(call.args.dtype), call.args.dtype,
                         row, static_cast<size_t>(length));
        } else {
          std::fill(row, row + length, 0.0f);
        }
        for (int64_t i = 0; i < length; ++i) target[i * width + t] = row[i];
      }
    }
  };
  parallel_for(threads, tiles, std::cref(body));
}

void panel_tokens(const Call& call, ThreadPool* threads) {
  const int64_t k = call.weights.k(), width = call.set.tile_tokens;
  const int64_t passes = (call.args.m + kPanelTokens - 1) / kPanelTokens;
  const int64_t share = ((call.args.m + passes - 1) / passes + width - 1) / width * width;
  float* packed = scratch_x(share * k);
  for (int64_t begin = 0; begin < call.args.m; begin += share) {
    const int64_t count = std::min(share, call.args.m - begin);
    const int64_t tiles = (count + width - 1) / width;
    pack_tokens(call, begin, count, packed, threads);
    const auto body = [&call, packed, begin, count, tiles, width, k](int64_t index) {
      const Task& task = call.weights.tasks()[index];
      constexpr int64_t kPanelK = kPanelChunks * kChunk;
      float* panel = scratch_panel(kTaskRows * (kPanelK + tiles * width));
      float* sums = panel + kTaskRows * kPanelK;
      for (int64_t k0 = 0; k0 < k; k0 += kPanelK) {
        const int64_t length = std::min(kPanelK, k - k0);
        call.weights.panel(call.set, task, call.args.dtype, k0 / kChunk, (k0 + length) / kChunk, panel);
        // Two blocks at a time: their part of the panel is what the first-level cache keeps.
        for (int64_t block = 0; block < task.blocks; block += 2) {
          for (int64_t tile = 0; tile < tiles; ++tile) {
            call.set.multiply(panel + block * length * kBlockRows, std::min<int64_t>(2, task.blocks - block), length,
                              packed + k0 * tiles * width + tile * length * width,
                              static_cast<int>(std::min(width, count - tile * width)),
                              sums + tile * width * kTaskRows + block * kBlockRows, kTaskRows, k0 != 0);
          }
        }
      }
      for (int64_t t = 0; t < count; ++t) call.store(task, begin + t, sums + t * kTaskRows);
    };
    parallel_for(threads, static_cast<int64_t>(call.weights.tasks().size()), std::cref(body));
  }
}

}  // namespace

Weights::Weights(std::span<const int64_t> segment_rows, int64_t k) : k_(k) {
  for (size_t segment = 0; segment < segment_rows.size(); ++segment) {
    const int64_t rows = segment_rows[segment];
    for (int64_t row = 0; row < rows; row += kTaskRows) {
      const int64_t count = std::min(kTaskRows, rows - row);
      tasks_.push_back(
          {static_cast<int64_t>(segment), row / kBlockRows, (count + kBlockRows - 1) / kBlockRows, n_ + row, count});
    }
    n_ += rows;
  }
}

void multiply(const Weights& weights, const GemmArgs& args, ThreadPool* threads) {
  const Call call{weights, kernels(), checked_arguments(args, weights.n(), weights.k())};
  if (args.m == 0 || weights.n() == 0) return;
  if (weights.n() * weights.k() * args.m < kAloneLimit) threads = nullptr;
  if (args.m <= kDecodeLimit && weights.decodes(call.set)) {
    decode_tokens(call, threads);
  } else {
    panel_tokens(call, threads);
  }
}

}  // namespace flute::cpu
