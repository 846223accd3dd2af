#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <utility>

#include "base/fail.hpp"
#include "lab.hpp"

namespace flute::cuda::lab {

Keys parse(const std::string& line) {
  Keys keys;
  std::istringstream in(line);
  for (std::string word; in >> word;) {
    const size_t at = word.find('=');
    if (at != std::string::npos) keys[word.substr(0, at)] = word.substr(at + 1);
  }
  return keys;
}

int number(const Keys& keys, const std::string& key, int otherwise) {
  const auto found = keys.find(key);
  return found == keys.end() ? otherwise : std::atoi(found->second.c_str());
}

Case to_case(const Keys& keys) {
  const auto value = [&](const char* key, int otherwise) { return number(keys, key, otherwise); };
  const auto text = [&](const char* key) { return keys.count(key) != 0 ? keys.at(key) : std::string(); };
  Case one;
  one.shape = {.m = value("m", 1), .n = value("n", 4096), .k = value("k", 4096)};
  one.format = {value("bits", 4), value("group", 128), text("dtype") == "bf16"};
  one.wish = {value("rows", 0),      value("warps", 0), value("blocks", 0), value("depth", 0),
              value("row_warps", 0), value("tile", 0),  value("split", 0),  value("stripe", 0)};
  one.family = value("family", 0);
  one.segments = value("segments", 1);
  one.rest = value("rest", one.rest);
  one.dependent = value("dependent", 1) != 0;
  one.by_turns = value("by_turns", 0) != 0;
  one.sustained = value("sustained", 0) != 0;
  one.label = text("set");
  return one;
}

std::string plan_text(const Case& one, const DeviceLimits& limits) { return to_string(plan_of(one, limits)); }

std::string describe(const Case& one, const DeviceLimits& limits) {
  return fmt::format("{} bits={} group={} m={} n={} k={} segments={} [{}]", dtype_name(one.dtype()), one.format.bits,
                     one.format.group_size, one.shape.m, one.shape.n, one.shape.k, one.segments,
                     plan_text(one, limits));
}

DeviceLimits limits_of(const std::string& card) {
  if (card == "H100") return {132, 227 * 1024};
  if (card == "A100") return {108, 163 * 1024, false};
  if (card == "A6000") return {84, 99 * 1024, false};
  fail(ErrorCode::kInvalidArgument, "card: expected H100, A100 or A6000, found {}", card);
}

Shape shape_of(const Case& one) {
  Shape shape = one.shape;
  shape.segments = one.segments;
  for (int64_t i = 1; i <= one.segments; ++i) {
    shape.segment_row[i] = i == one.segments ? shape.n : static_cast<int>(shape.n * i / one.segments) / 32 * 32;
  }
  return shape;
}

MultiplyPlan plan_of(const Case& one, const DeviceLimits& limits) {
  if (one.family == 0) return make_multiply_plan(shape_of(one), one.format, limits, one.wish);
  const Family family = one.family == 1 ? Family::kDecode : one.family == 2 ? Family::kPrefill : Family::kPrefillMma;
  return make_multiply_plan(family, shape_of(one), one.format, limits, one.wish);
}

MultiplyArguments make_arguments(const Case& one) {
  MultiplyArguments arguments = {};
  arguments.m = one.shape.m, arguments.n = one.shape.n, arguments.k = one.shape.k;
  arguments.ldx = one.shape.k, arguments.ldy = one.shape.n;
  arguments.dependent_launch = one.dependent;
  return arguments;
}

void launch(const MultiplyPlan& plan, MultiplyArguments arguments, const Case& one, cudaStream_t stream) {
  const OpenDevice& device = opened_device(0);
  const Multiply multiply(plan, one.format);
  arguments.dependent_launch = arguments.dependent_launch && device.waits_for_previous;
  load_kernels(multiply, device.limits, 0);
  launch_multiply(multiply, arguments, stream);
}

}  // namespace flute::cuda::lab
