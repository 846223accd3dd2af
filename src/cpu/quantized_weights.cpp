#include "cpu/quantized_weights.hpp"

#include <algorithm>
#include <cstring>

#include "flute/threads.hpp"

namespace flute::cpu {
namespace {

int64_t blocks_of(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

/// Where a block's 16 elements of each column lie.
struct Place {
  int64_t begin, stride;
};

/// Blocks one after the other: [block][column][16].
Place apart(int64_t block, int64_t columns) { return {block * columns * kBlockRows, kBlockRows}; }

/// The blocks of a task side by side, so that the task reads one stream of scales: [task][group][block of the
/// task][16].
Place side_by_side(int64_t block, int64_t blocks, int64_t groups) {
  const int64_t first = block / kTaskBlocks * kTaskBlocks, count = std::min(kTaskBlocks, blocks - first);
  return {(first * groups + block - first) * kBlockRows, count * kBlockRows};
}

/// One block of rows [n][columns] to its place.
template <typename T>
void interleave(const T* rows, int64_t n, int64_t columns, int64_t block, Place place, T* blocks) {
  const int64_t first = block * kBlockRows, count = std::min(kBlockRows, n - first);
  for (int64_t c = 0; c < columns; ++c) {
    T* target = blocks + place.begin + c * place.stride;
    for (int64_t r = 0; r < count; ++r) target[r] = rows[(first + r) * columns + c];
  }
}

/// interleave() undone.
template <typename T>
void separate(const T* blocks, int64_t n, int64_t columns, int64_t block, Place place, T* rows) {
  const int64_t first = block * kBlockRows, count = std::min(kBlockRows, n - first);
  for (int64_t c = 0; c < columns; ++c) {
    const T* source = blocks + place.begin + c * place.stride;
    for (int64_t r = 0; r < count; ++r) rows[(first + r) * columns + c] = source[r];
  }
}

void interleave_scales(const void* rows, DType dtype, int64_t n, int64_t groups, int64_t block, Buffer& scales) {
  const Place place = side_by_side(block, blocks_of(n), groups);
  if (dtype == DType::kF32) {
    interleave(static_cast<const uint32_t*>(rows), n, groups, block, place, reinterpret_cast<uint32_t*>(scales.data()));
  } else {
    interleave(static_cast<const uint16_t*>(rows), n, groups, block, place, reinterpret_cast<uint16_t*>(scales.data()));
  }
}

std::vector<std::byte> separate_scales(const Buffer& scales, DType dtype, int64_t n, int64_t groups) {
  std::vector<std::byte> rows(static_cast<size_t>(n * groups) * dtype_size(dtype));
  for (int64_t block = 0; block < blocks_of(n); ++block) {
    const Place place = side_by_side(block, blocks_of(n), groups);
    if (dtype == DType::kF32) {
      separate(reinterpret_cast<const uint32_t*>(scales.data()), n, groups, block, place,
               reinterpret_cast<uint32_t*>(rows.data()));
    } else {
      separate(reinterpret_cast<const uint16_t*>(scales.data()), n, groups, block, place,
               reinterpret_cast<uint16_t*>(rows.data()));
    }
  }
  return rows;
}

std::vector<float> rounded(const std::vector<float>& values, DType dtype) {
  std::vector<float> result(values.size());
  std::transform(values.begin(), values.end(), result.begin(), [dtype](float v) { return round_to(dtype, v); });
  return result;
}

/// Rounds `count` floats to `dtype`, a piece at a time.
void round_floats(float* values, int64_t count, DType dtype) {
  if (dtype == DType::kF32) return;
  constexpr int64_t kPiece = 1024;
  uint16_t narrow[kPiece];
  for (int64_t i = 0; i < count; i += kPiece) {
    const auto length = static_cast<size_t>(std::min(kPiece, count - i));
    convert_from_f32(values + i, narrow, dtype, length);
    convert_to_f32(narrow, dtype, values + i, length);
  }
}

/// Scales of 16-bit activations are rounded to the activations' type first; fp32 holds every scale exactly.
bool needs_rounding(DType scale, DType activation) { return activation != DType::kF32 && scale != activation; }

/// `count` scales from `index` on, rounded to `dtype`.
void load_rounded(const Buffer& scales, DType scale_dtype, int64_t index, int64_t count, DType dtype, float* out) {
  convert_to_f32(scales.data() + static_cast<size_t>(index) * dtype_size(scale_dtype), scale_dtype, out,
                 static_cast<size_t>(count));
  if (needs_rounding(scale_dtype, dtype)) round_floats(out, count, dtype);
}

std::vector<int64_t> rows_of(std::span<const PackedView> segments) {
  std::vector<int64_t> rows;
  for (const PackedView& segment : segments) rows.push_back(segment.n);
  return rows;
}

}  // namespace

QuantizedWeights::QuantizedWeights(std::span<const PackedView> segments, ThreadPool* threads)
    : Weights(rows_of(segments), segments.front().k),
      bits_(segments.front().bits),
      group_size_(segments.front().group_size),
      groups_(segments.front().groups()) {
  for (const PackedView& view : segments) {
    Segment segment;
    const int64_t blocks = blocks_of(view.n), words = view.words_per_row();
    const size_t scale_bytes = static_cast<size_t>(blocks * kBlockRows * groups_) * dtype_size(view.scale_dtype);
    segment.n = view.n;
    segment.scale_dtype = view.scale_dtype;
    segment.codebook.assign(view.codebook.begin(), view.codebook.end());
    segment.codes = Buffer(static_cast<size_t>(blocks * kBlockRows * words) * sizeof(uint32_t) + kCodesSlack);
    segment.scales = Buffer(scale_bytes);
    if (view.offsets != nullptr) segment.offsets = Buffer(scale_bytes);
    segment.per_row = view.per_row_codebook();
    if (segment.per_row || view.offsets != nullptr) decodes_ = false;

    const auto length = int64_t{1} << bits_;
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      std::vector<float>& table = segment.tables[static_cast<int>(dtype)];
      table = rounded(segment.codebook, dtype);
      if (!segment.per_row) continue;
      std::vector<float> tiled(static_cast<size_t>(blocks * kBlockRows * length));
      for (int64_t block = 0; block < blocks; ++block) {
        interleave(table.data(), view.n, length, block, apart(block, length), tiled.data());
      }
      table = std::move(tiled);
    }
    const auto body = [&](int64_t block) {
      interleave(view.codes.data(), view.n, words, block, apart(block, words),
                 reinterpret_cast<uint32_t*>(segment.codes.data()));
      interleave_scales(view.scales, view.scale_dtype, view.n, groups_, block, segment.scales);
      if (view.offsets == nullptr) return;
      interleave_scales(view.offsets, view.scale_dtype, view.n, groups_, block, segment.offsets);
    };
    parallel_for(threads, blocks, std::cref(body));
    segments_.push_back(std::move(segment));
  }
}

size_t QuantizedWeights::bytes() const {
  size_t bytes = 0;
  for (const Segment& segment : segments_) {
    bytes += segment.codes.bytes() + segment.scales.bytes() + segment.offsets.bytes();
    bytes += segment.codebook.size() * sizeof(float);
    for (const std::vector<float>& table : segment.tables) bytes += table.size() * sizeof(float);
  }
  return bytes;
}

PackedMatrix QuantizedWeights::to_packed(int index) const {
  const Segment& segment = segments_[static_cast<size_t>(index)];
  PackedMatrix packed;
  packed.n = segment.n;
  packed.k = k();
  packed.bits = bits_;
  packed.group_size = group_size_;
  packed.scale_dtype = segment.scale_dtype;
  packed.codebook = segment.codebook;
  const int64_t words = k() / 32 * bits_;
  packed.codes.resize(static_cast<size_t>(segment.n * words));
  for (int64_t block = 0; block < blocks_of(segment.n); ++block) {
    separate(reinterpret_cast<const uint32_t*>(segment.codes.data()), segment.n, words, block, apart(block, words),
             packed.codes.data());
  }
  packed.scales = separate_scales(segment.scales, segment.scale_dtype, segment.n, groups_);
  if (segment.offsets.data() != nullptr) {
    packed.offsets = separate_scales(segment.offsets, segment.scale_dtype, segment.n, groups_);
  }
  return packed;
}

QuantizedTile QuantizedWeights::tile(const Segment& segment, const Task& task, DType dtype) const {
  QuantizedTile tile;
  tile.bits = bits_;
  tile.chunks = k() / kChunk;
  tile.groups = groups_;
  tile.group_chunks = group_size_ < 0 ? tile.chunks : group_size_ / kChunk;
  tile.scale_stride = task.blocks * kBlockRows;
  tile.codes = reinterpret_cast<const uint32_t*>(segment.codes.data()) + task.block * tile.chunks * bits_ * kBlockRows;
  tile.scales =
      segment.scales.data() + static_cast<size_t>(task.block * groups_ * kBlockRows) * dtype_size(segment.scale_dtype);
  tile.scale_dtype = segment.scale_dtype;
  tile.table = segment.tables[static_cast<int>(dtype)].data();
  tile.per_row_table = segment.per_row;
  if (segment.per_row) tile.table += task.block * kBlockRows << bits_;
  return tile;
}

void QuantizedWeights::decode(const Kernels& kernels, const Task& task, DType dtype, const float* x, int64_t ldx,
                              int tokens, float* y) const {
  const Segment& segment = segments_[static_cast<size_t>(task.segment)];
  QuantizedTile blocks = tile(segment, task, dtype);
  std::vector<float> scales;
  if (needs_rounding(segment.scale_dtype, dtype)) {
    scales.resize(static_cast<size_t>(task.blocks * groups_ * kBlockRows));
    load_rounded(segment.scales, segment.scale_dtype, task.block * groups_ * kBlockRows,
                 static_cast<int64_t>(scales.size()), dtype, scales.data());
    blocks.scales = scales.data();
    blocks.scale_dtype = DType::kF32;
  }
  kernels.decode(blocks, task.blocks, x, ldx, tokens, y);
}

void QuantizedWeights::panel(const Kernels& kernels, const Task& task, DType dtype, int64_t begin, int64_t end,
                             float* panel) const {
  const Segment& segment = segments_[static_cast<size_t>(task.segment)];
  QuantizedTile blocks = tile(segment, task, dtype);
  // Scales and offsets of the groups that the panel touches, of all blocks.
  const int64_t first_group = begin / blocks.group_chunks, stride = blocks.scale_stride;
  const int64_t count = ((end - 1) / blocks.group_chunks + 1 - first_group) * stride;
  const int64_t index = task.block * groups_ * kBlockRows + first_group * stride;
  std::vector<float> scales, offsets;
  if (needs_rounding(segment.scale_dtype, dtype)) {
    scales.resize(static_cast<size_t>(count));
    load_rounded(segment.scales, segment.scale_dtype, index, count, dtype, scales.data());
    blocks.scales = scales.data();
    blocks.scale_dtype = DType::kF32;
  } else {
    blocks.scales = segment.scales.data() + static_cast<size_t>(index) * dtype_size(segment.scale_dtype);
  }
  if (segment.offsets.data() != nullptr) {
    offsets.resize(static_cast<size_t>(count));
    load_rounded(segment.offsets, segment.scale_dtype, index, count, dtype, offsets.data());
  }
  const int64_t length = (end - begin) * kChunk * kBlockRows;
  kernels.dequantize(blocks, task.blocks, begin, end, panel);
  round_floats(panel, task.blocks * length, dtype);
  if (offsets.empty()) return;
  for (int64_t block = 0; block < task.blocks; ++block) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const float* offset = offsets.data() + (chunk / blocks.group_chunks - first_group) * stride + block * kBlockRows;
      float* values = panel + block * length + (chunk - begin) * kChunk * kBlockRows;
      for (int64_t i = 0; i < kChunk * kBlockRows; ++i) values[i] += offset[i % kBlockRows];
    }
  }
  round_floats(panel, task.blocks * length, dtype);
}

}  // namespace flute::cpu
