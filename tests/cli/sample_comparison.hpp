#pragma once
#include <cmath>
#include <cstdint>
#include <string>

#include "cli/comparison.hpp"

namespace flute::cli {

/// A comparison as `flute compare` would find it: an original and `quantized` models of `layers` blocks, with errors,
/// tables and samples. Nothing in it is measured.
inline Comparison sample_comparison(int quantized, int layers, const std::string& name_prefix = "llama-") {
  Comparison comparison;
  comparison.text_name = "test.txt";
  comparison.prompt = "A table";
  comparison.original = 0;
  ModelFacts original;
  original.name = name_prefix + "original";
  original.codebook = "bf16";
  original.bits_per_weight = 16;
  original.checkpoint.bytes = 14'700'000'000;
  original.perplexity = 6.508;
  original.predictions = 53144;
  original.decode_tokens_per_second = 11.2;
  original.sample = "A table <b>of</b> values & codes.";
  comparison.models.push_back(original);
  for (int i = 0; i < quantized; ++i) {
    ModelFacts facts = original;
    const int bits = 4 - i % 3;
    const bool fitted = i % 2 == 1;
    facts.quantized = true;
    facts.codebook = fitted ? "kmeans" : "nf";
    facts.group = i < 6 ? "64" : "row";
    facts.name = name_prefix + facts.codebook + std::to_string(bits) + "-g" + facts.group;
    facts.bits_per_weight = bits + (i < 6 ? 0.25 : 0.01);
    facts.checkpoint.bytes = static_cast<int64_t>(2e9 + 0.8e9 * bits);
    facts.perplexity = 6.508 * (1 + 0.03 * std::pow(5.0, 4 - bits) * (fitted ? 0.8 : 1.0));
    facts.decode_tokens_per_second = 11.2 * 8 / bits;
    const double error = 1.5 * std::pow(0.5, bits) * (fitted ? 0.9 : 1.0);
    for (int layer = 0; layer < layers; ++layer) {
      for (const char* kind : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                               "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
        io::LayerReport report;
        report.name = "model.layers." + std::to_string(layer) + "." + kind;
        report.quantized = true;
        report.n = report.k = 256;
        report.bits = bits;
        report.group_size = 64;
        report.relative_error = error * (1 + 0.15 * std::sin(layer + 0.7 * static_cast<double>(report.name.size())));
        facts.checkpoint.layers.push_back(report);
      }
    }
    WeightHistogram histogram;
    histogram.layers = fitted ? 7 : 16;
    double sum = 0;
    for (int bin = 0; bin < 120; ++bin) {
      const double x = -1.2 + 2.4 * (bin + 0.5) / 120;
      histogram.density.push_back(std::abs(x) > 1 ? 0 : std::exp(-x * x * 4));
      sum += histogram.density.back();
    }
    for (double& share : histogram.density) share /= sum;
    for (int table = 0; table < (fitted ? 7 : 1); ++table) {
      std::vector<double> values;
      const int count = 1 << bits;
      for (int code = 0; code < count; ++code) {
        const double x = -1 + 2.0 * code / (count - 1);
        values.push_back(x * (0.7 + 0.3 * x * x) + 0.01 * std::sin(table * 3 + code));
      }
      histogram.tables.push_back(values);
    }
    facts.histogram = histogram;
    facts.sample += " This one was written by a model of " + std::to_string(bits) + " bits.\n\nAnd a second paragraph.";
    comparison.models.push_back(facts);
  }
  return comparison;
}

}  // namespace flute::cli
