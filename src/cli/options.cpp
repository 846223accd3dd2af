#include "cli/options.hpp"

#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <regex>
#include <string_view>
#include <utility>

#include "cli/command.hpp"
#include "flute/codebook.hpp"
#include "flute/error.hpp"

namespace flute::cli {

void add_threads(CLI::App& command, int& threads) {
  command.add_option("--threads", threads, "Threads to use (default: as many as the machine offers)")
      ->check(CLI::Range(1, 1024).description(""))
      ->type_name("N");
}

void add_json(CLI::App& command, bool& json) {
  command.add_flag("--json", json, "Print the answer as JSON on standard output");
}

void add_dtype(CLI::App& command, const std::string& name, DType& dtype, const std::string& description) {
  const auto set = [&dtype](const std::string& text) { dtype = dtype_from_name(text); };
  command
      .add_option_function<std::string>(
          name, set, fmt::format("{}: fp16, bf16 or fp32 (default: {})", description, dtype_name(dtype)))
      ->check(CLI::IsMember({"fp16", "bf16", "fp32"}).description(""))
      ->type_name("DTYPE");
}

Device parse_device(const std::string& text) {
  if (text == "cpu") return {};
  Device device{Device::Kind::kCuda, 0};
  if (text == "cuda") return device;
  constexpr std::string_view kNumbered = "cuda:";
  if (text.starts_with(kNumbered)) {
    const char* const end = text.data() + text.size();
    const auto [stopped, error] = std::from_chars(text.data() + kNumbered.size(), end, device.index);
    if (error == std::errc() && stopped == end && device.index >= 0) return device;
  }
  throw UsageError(fmt::format("--device: expected cpu, cuda or cuda:N, found '{}'", text));
}

std::pair<std::string, int> parse_layer_bits(const std::string& text) {
  const size_t equals = text.rfind('=');
  int bits = 0;
  const char* const end = text.data() + text.size();
  const char* const digits = equals == std::string::npos ? end : text.data() + equals + 1;
  const auto [stopped, error] = std::from_chars(digits, end, bits);
  if (equals == 0 || error != std::errc() || stopped != end || bits < 2 || bits > 8) {
    throw UsageError(fmt::format("--layer-bits: expected REGEX=N with N from 2 to 8, found '{}'", text));
  }
  check_regex("--layer-bits", text.substr(0, equals));
  return {text.substr(0, equals), bits};
}

void check_regex(const std::string& option, const std::string& text) {
  try {
    const std::regex regex(text, std::regex::ECMAScript);
  } catch (const std::regex_error& error) {
    throw UsageError(fmt::format("{}: expected a regular expression, found '{}' ({})", option, text, error.what()));
  }
}

bool is_codebook_name(const std::string& codebook) {
  const std::vector<std::string_view> names = io::codebook_names();
  return std::find(names.begin(), names.end(), codebook) != names.end();
}

void check_codebook(const std::string& codebook, int bits) {
  if (!is_codebook_name(codebook)) {
    std::error_code error;
    if (std::filesystem::exists(codebook, error)) return;
    throw UsageError(fmt::format("--codebook: expected one of {} or a file, found '{}'",
                                 fmt::join(io::codebook_names(), ", "), codebook));
  }
  if (codebook == "kmeans") return;
  try {
    named_codebook(codebook, bits);
  } catch (const Error& error) {
    throw UsageError(fmt::format("--codebook {}: {}", codebook, error.what()));
  }
}

}  // namespace flute::cli
