#pragma once
#include <string>
#include <vector>

#include "flute/dtype.hpp"
#include "flute/gemm.hpp"
#include "io/pipelines.hpp"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace flute::cli {

/// `--threads N`; 0, the default, means as many as the machine offers.
void add_threads(CLI::App& command, int& threads);
/// `--json`
void add_json(CLI::App& command, bool& json);
/// `name fp16|bf16|fp32`, `dtype` holding the default.
void add_dtype(CLI::App& command, const std::string& name, DType& dtype, const std::string& description);

/// `cpu`, `cuda` or `cuda:N` of --device; throws UsageError.
Device parse_device(const std::string& text);
/// `REGEX=N` of --layer-bits; throws UsageError.
std::pair<std::string, int> parse_layer_bits(const std::string& text);
/// Throws UsageError unless `text` is a regular expression (ECMAScript).
void check_regex(const std::string& option, const std::string& text);
/// Throws UsageError unless `codebook` is the name of a table that exists at `bits`, or an existing file.
void check_codebook(const std::string& codebook, int bits);
/// Is it the name of a table, as opposed to a file?
bool is_codebook_name(const std::string& codebook);

}  // namespace flute::cli
