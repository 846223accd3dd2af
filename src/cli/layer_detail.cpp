#include "cli/layer_detail.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cli/text.hpp"
#include "flute/dtype.hpp"

namespace flute::cli {
namespace {
constexpr int kBarWidth = 40;
}

LayerDetail layer_detail(const std::string& name, const PackedView& layer) {
  LayerDetail detail;
  detail.name = name;
  detail.n = layer.n;
  detail.k = layer.k;
  detail.group_size = layer.group_size;
  detail.bits = layer.bits;
  detail.per_row_codebook = layer.per_row_codebook();
  detail.has_offsets = layer.offsets != nullptr;
  detail.bytes = layer.bytes();
  detail.scale_dtype = dtype_name(layer.scale_dtype);

  const size_t table_size = size_t{1} << layer.bits;
  const auto table = layer.codebook.first(std::min(table_size, layer.codebook.size()));
  detail.codebook.assign(table.begin(), table.end());

  std::vector<float> scales(static_cast<size_t>(layer.n * layer.groups()));
  convert_to_f32(layer.scales, layer.scale_dtype, scales.data(), scales.size());
  if (!scales.empty()) {
    std::sort(scales.begin(), scales.end());
    detail.smallest_scale = scales.front();
    detail.median_scale = scales[scales.size() / 2];
    detail.largest_scale = scales.back();
  }

  detail.code_counts.assign(table_size, 0);
  std::vector<uint8_t> codes(static_cast<size_t>(layer.k));
  const auto words = static_cast<size_t>(layer.words_per_row());
  for (int64_t row = 0; row < layer.n; ++row) {
    unpack_codes(layer.codes.subspan(static_cast<size_t>(row) * words, words), layer.bits, codes);
    for (const uint8_t code : codes) ++detail.code_counts[code];
  }
  return detail;
}

std::string render_detail(const LayerDetail& detail) {
  const double weights = static_cast<double>(detail.n) * static_cast<double>(detail.k);
  std::string out = fmt::format("{}\n", detail.name);
  out += fmt::format("  shape        {} x {}\n", detail.n, detail.k);
  out += fmt::format("  bits         {}\n", detail.bits);
  out += detail.group_size < 0 ? "  group        one scale a row\n"
                               : fmt::format("  group        {}\n", detail.group_size);
  out += fmt::format("  bytes        {} ({:.3f} bits/weight)\n", human_bytes(static_cast<double>(detail.bytes)),
                     8.0 * static_cast<double>(detail.bytes) / std::max(weights, 1.0));
  out += fmt::format("  scales       {}, {} to {}, median {}{}\n", detail.scale_dtype,
                     human_number(detail.smallest_scale), human_number(detail.largest_scale),
                     human_number(detail.median_scale), detail.has_offsets ? ", with offsets" : "");
  out += fmt::format("  table        {}{}\n", detail.codebook.size(),
                     detail.per_row_codebook ? " values for each row (the first row's shown)" : " values");
  const double most = static_cast<double>(*std::max_element(detail.code_counts.begin(), detail.code_counts.end()));
  out += "\n  code      value   share\n";
  for (size_t code = 0; code < detail.codebook.size(); ++code) {
    const auto count = static_cast<double>(detail.code_counts[code]);
    const auto length = static_cast<size_t>(std::lround(count / std::max(most, 1.0) * kBarWidth));
    std::string bar;
    for (size_t i = 0; i < length; ++i) bar += "█";
    std::string line = fmt::format("  {:4}  {:>9.5f}  {:5.2f} %  {}", code, detail.codebook[code],
                                   100 * count / std::max(weights, 1.0), bar);
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + '\n';
  }
  return out;
}

}  // namespace flute::cli
