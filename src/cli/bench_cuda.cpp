// flute bench --device cuda
#include <nlohmann/json.hpp>
#include <string>

#include "cli/bench.hpp"
#include "cli/options.hpp"
#include "cli/terminal.hpp"
#include "cuda/format.hpp"
#include "cuda/measure/measure.hpp"
#include "cuda/multiply_plan.hpp"
#include "flute/error.hpp"

namespace flute::cli {
namespace {

/// Plans of a matrix's multiplies.
void show_plans(const BenchOptions& options, const cuda::DeviceLimits& limits) {
  for (const std::string& text : options.shapes) {
    const BenchShape shape = parse_shape(text);
    for (const int bits : options.bits) {
      PackedView view;
      view.n = shape.n;
      view.k = shape.k;
      view.bits = bits;
      view.group_size = options.group_size;
      const std::vector<float> codebook(size_t{1} << bits);
      view.codebook = codebook;
      const cuda::Format format = cuda::supported_format({&view, 1}, options.dtype);
      for (const int64_t m : options.tokens) {
        const cuda::Shape sizes{
            .m = static_cast<int>(m), .n = static_cast<int>(shape.n), .k = static_cast<int>(shape.k)};
        const std::string plan = to_string(cuda::make_multiply_plan(sizes, format, limits));
        if (options.json) {
          nlohmann::ordered_json json = bench_line(options, shape, m, bits);
          json["plan"] = plan;
          print_json(json, JsonStyle::kOneLine);
        } else {
          print("{:>6} x {:<6} {} bits  m {:<5} {}\n", shape.n, shape.k, bits, m, plan);
        }
      }
    }
  }
}

cuda::DeviceLimits limits_for_plans(int index) {
  try {
    const cuda::DeviceLimits limits = cuda::device_limits(index);
    note("plans for {}", cuda::device_name(index));
    return limits;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported) throw;
    note("plans for an H100 ({})", error.what());
    return {};
  }
}

void show_times(const BenchOptions& options, const BenchShape& shape, int bits, int64_t m, const std::string& target,
                const cuda::Measured& measured) {
  const double seconds = measured.ours.median, floor = measured.floor.median;
  if (options.json) {
    nlohmann::ordered_json json = bench_line(options, shape, m, bits);
    json["target"] = target;
    json["seconds"] = seconds;
    json["low_seconds"] = measured.ours.low;
    json["high_seconds"] = measured.ours.high;
    json["plain_launch_seconds"] = measured.plain_launch.median;
    json["floor_seconds"] = floor;
    if (measured.dense) json["cublas_seconds"] = measured.dense->median;
    print_json(json, JsonStyle::kOneLine);
  } else {
    print("{:>6} x {:<6} {} bits  m {:<5} {:>10.2f} us  floor {:>8.2f} us  {:>5.2f} of the floor", shape.n, shape.k,
          bits, m, seconds * 1e6, floor * 1e6, floor / seconds);
    if (measured.dense) print("  {:>5.2f} x cuBLAS {}", measured.dense->median / seconds, dtype_name(options.dtype));
    print("\n");
  }
  flush_out();
}

/// How fast a matrix is made ready, and read back: bytes of packed codes a second.
void show_tiling(const BenchOptions& options, const BenchShape& shape, int bits, cuda::Measure& measure) {
  const double bytes = static_cast<double>(shape.n) * static_cast<double>(shape.k) * bits / 8;
  const double tile = bytes / measure.tile().median, untile = bytes / measure.untile().median;
  if (options.json) {
    nlohmann::ordered_json json = bench_line(options, shape, 0, bits);
    json["tile_bytes_per_second"] = tile;
    json["untile_bytes_per_second"] = untile;
    print_json(json, JsonStyle::kOneLine);
  } else {
    print("{:>6} x {:<6} {} bits  packed to tiled at {:.0f} GB/s, back at {:.0f} GB/s\n", shape.n, shape.k, bits,
          1e-9 * tile, 1e-9 * untile);
  }
}

}  // namespace

int bench_cuda(const BenchOptions& options) {
  const int index = parse_device(options.device).index;
  if (options.plan) {
    show_plans(options, limits_for_plans(index));
    return 0;
  }
  const std::string target = cuda::device_name(index);
  if (!options.json) note("{}", target);
  for (const std::string& text : options.shapes) {
    const BenchShape shape = parse_shape(text);
    for (const int bits : options.bits) {
      const PackedMatrix packed = random_matrix(shape, options, bits);
      cuda::Measure measure({Device::Kind::kCuda, index}, packed.view(), options.dtype);
      if (is_terminal(stderr)) note("{} at {} bits: {} matrices", text, bits, measure.copies());
      for (const int64_t m : options.tokens) show_times(options, shape, bits, m, target, measure.multiply(m));
      show_tiling(options, shape, bits, measure);
    }
  }
  return 0;
}

}  // namespace flute::cli
