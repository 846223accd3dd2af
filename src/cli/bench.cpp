#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "cli/bench.hpp"

#include "cli/command.hpp"
#include "cli/options.hpp"
#include "cli/terminal.hpp"
#include "cpu/buffer.hpp"
#include "cpu/kernels.hpp"
#include "flute/flute.hpp"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace flute::cli {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

/// Bytes that matrices must take together to be read from memory every time: 4 last-level caches, at most an eighth of
/// the machine's memory.
size_t rotation_bytes() {
  size_t cache = size_t{64} << 20, memory = size_t{8} << 30;
#if defined(__linux__)
  if (const long size = sysconf(_SC_LEVEL3_CACHE_SIZE); size > 0) cache = static_cast<size_t>(size);
  memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
#endif
  return std::min(4 * cache, memory / 8);
}

/// Reads `bytes` from `data` once, a part for each thread.
void read_once(const std::byte* data, size_t bytes, ThreadPool& pool) {
  const size_t part = bytes / static_cast<size_t>(pool.size()) / 256 * 256;
  pool.parallel_for(pool.size(), [&](int64_t index) {
    [[maybe_unused]] volatile uint32_t sink = cpu::kernels().read(data + static_cast<size_t>(index) * part, part);
  });
}

/// Floating-point operations a second of independent multiply-adds in registers, all threads.
double peak_rate(ThreadPool& pool) {
  constexpr int64_t kRounds = 4000000;
  const double start = now();
  pool.parallel_for(
      pool.size(), [](int64_t) { [[maybe_unused]] volatile float sink = cpu::kernels().multiply_add_chains(kRounds); });
  return 1.0 * kRounds * cpu::kernels().chain_flops * pool.size() / (now() - start);
}

struct Figures {
  double seconds = 0, floor_seconds = 0, peak_fraction = 0;
};

/// Multiply, floor and (many tokens) peak by turns, so that whatever disturbs the machine disturbs all of them.
Figures measure(const std::vector<Matrix>& matrices, const cpu::Buffer& plain, size_t bytes, int64_t m, DType dtype,
                ThreadPool& pool) {
  const int64_t n = matrices[0].n(), k = matrices[0].k();
  std::vector<std::byte> x(static_cast<size_t>(m * k) * dtype_size(dtype)),
      y(static_cast<size_t>(m * n) * dtype_size(dtype));
  for (int64_t i = 0; i < m * k; ++i)
    store_from_f32(x.data(), dtype, static_cast<size_t>(i), static_cast<float>(i % 7) - 3);
  GemmArgs args;
  args.m = m;
  args.x = x.data();
  args.y = y.data();
  args.dtype = dtype;
  const Execution execution{.threads = &pool};
  constexpr double kSeconds = 1.0;
  constexpr size_t kFewest = 5, kMost = 200;
  const size_t slices = std::max<size_t>(1, plain.bytes() / bytes);
  std::vector<double> times, floors, fractions;
  gemm(matrices[0], args, execution);
  const double begin = now();
  for (size_t i = 1; times.size() < kFewest || (now() - begin < kSeconds && times.size() < kMost); ++i) {
    const double start = now();
    gemm(matrices[i % matrices.size()], args, execution);
    const double middle = now();
    read_once(plain.data() + i % slices * bytes, bytes, pool);
    times.push_back(middle - start);
    floors.push_back(now() - middle);
    if (m >= 64) fractions.push_back(2.0 * static_cast<double>(m * n * k) / (middle - start) / peak_rate(pool));
  }
  return {median(times), median(floors), fractions.empty() ? 0 : median(fractions)};
}

void show(const BenchOptions& options, const BenchShape& shape, int64_t m, int bits, const Figures& figures,
          int threads) {
  if (!options.json) {
    print("{:>6} x {:<6} {} bits  m {:<5} {:>10.3f} ms  floor {:>8.3f} ms  {:>5.2f} of the floor", shape.n, shape.k,
          bits, m, figures.seconds * 1e3, figures.floor_seconds * 1e3, figures.floor_seconds / figures.seconds);
    if (figures.peak_fraction > 0) print("  {:.2f} of peak", figures.peak_fraction);
    print("\n");
  } else {
    nlohmann::ordered_json json = bench_line(options, shape, m, bits);
    json["target"] = cpu::kernels().name;
    json["threads"] = threads;
    json["seconds"] = figures.seconds;
    json["floor_seconds"] = figures.floor_seconds;
    if (figures.peak_fraction > 0) json["peak_fraction"] = figures.peak_fraction;
    print_json(json, JsonStyle::kOneLine);
  }
  flush_out();
}

int run(const BenchOptions& options) {
  if (options.plan) throw UsageError("--plan: expected --device cuda, found '" + options.device + "'");
  ThreadPool pool(options.threads);
  for (const std::string& text : options.shapes) {
    const BenchShape shape = parse_shape(text);
    for (const int bits : options.bits) {
      const PackedMatrix packed = random_matrix(shape, options, bits);
      const PackedView view = packed.view();
      const size_t bytes = view.bytes();
      const size_t copies = std::clamp<size_t>(rotation_bytes() / bytes + 1, 2, 4096);
      if (is_terminal(stderr))
        note("{} at {} bits: {} matrices of {:.1f} MB", text, bits, copies, 1e-6 * static_cast<double>(bytes));
      std::vector<Matrix> matrices;
      for (size_t i = 0; i < copies; ++i) {
        matrices.push_back(Matrix::from_packed(Device{}, {&view, 1}, {.threads = &pool}));
      }
      const cpu::Buffer plain(copies * bytes);
      for (const int64_t m : options.tokens) {
        show(options, shape, m, bits, measure(matrices, plain, bytes, m, options.dtype, pool), pool.size());
      }
    }
  }
  return 0;
}

}  // namespace

BenchShape parse_shape(const std::string& text) {
  BenchShape shape;
  char end = 0;
  if (std::sscanf(text.c_str(), "%" SCNd64 "x%" SCNd64 "%c", &shape.n, &shape.k, &end) != 2 || shape.n < 1 ||
      shape.k < 32 || shape.k % 32 != 0) {
    throw UsageError("--shape: expected NxK with K a multiple of 32, found '" + text + "'");
  }
  return shape;
}

PackedMatrix random_matrix(const BenchShape& shape, const BenchOptions& options, int bits) {
  std::mt19937_64 random(1);
  PackedMatrix matrix =
      allocate_packed(shape.n, shape.k, options.group_size, DType::kF16, named_codebook(options.codebook, bits));
  for (uint32_t& word : matrix.codes) word = static_cast<uint32_t>(random());
  const size_t scales = matrix.scales.size() / 2;
  for (size_t i = 0; i < scales; ++i) store_from_f32(matrix.scales.data(), DType::kF16, i, 0.01f);
  return matrix;
}

nlohmann::ordered_json bench_line(const BenchOptions& options, const BenchShape& shape, int64_t m, int bits) {
  nlohmann::ordered_json json;
  json["shape"] = {{"n", shape.n}, {"k", shape.k}};
  if (m != 0) json["shape"]["m"] = m;
  json["format"] = {{"bits", bits},
                    {"group_size", options.group_size},
                    {"codebook", options.codebook},
                    {"dtype", dtype_name(options.dtype)}};
  json["device"] = options.device;
  return json;
}

void add_bench(CLI::App& app, Command& chosen) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* command = app.add_subcommand("bench", "Time the multiply against the floor: reading the same bytes once");
  command->add_option("--device", options->device, "Where to multiply: cpu, or cuda, cuda:1 ... (default cpu)")
      ->type_name("DEVICE");
  command->add_option("--shape", options->shapes, "Weights' shape, repeatable (default: Llama-3-8B's)")
      ->type_name("NxK");
  CLI::Option* const tokens =
      command->add_option("--m", options->tokens, "Tokens, a list (default 1,16,512; cuda: 1,8,16,32,64,256,1024)")
          ->delimiter(',')
          ->check(CLI::Range(1, 65536));
  command->add_option("--bits", options->bits, "Bits, a list (default 4,3,2)")->delimiter(',')->check(CLI::Range(2, 8));
  command->add_option("--group-size", options->group_size, "Weights that share a scale (default 64)");
  add_dtype(*command, "--dtype", options->dtype, "Type of the activations; cuda has fp16 (its default) and bf16");
  command->add_flag("--plan", options->plan, "cuda: print the plan of each multiply instead; needs no GPU");
  add_threads(*command, options->threads);
  add_json(*command, options->json);
  command->footer(
      "Matrices rotate over more than four last-level caches (or an eighth of the memory). With --json one object a\n"
      "line: shape, format, median seconds, floor_seconds, and on the CPU from 64 tokens on peak_fraction: the share "
      "of\n"
      "this machine's fp32 peak, independent multiply-adds in registers, measured by turns with the multiply.\n"
      "FLUTE_CPU_TARGET=avx512|avx2|sse4|base chooses the CPU's instruction set.\n"
      "CUDA replays graphs of launches; cublas_seconds is a plain matrix's time where libcublas is found,\n"
      "plain_launch_seconds the time without programmatic dependent launch.\n\n"
      "Examples:\n"
      "  flute bench --shape 4096x14336 --m 1,512 --bits 4\n"
      "  flute bench --device cuda --m 1,16 --dtype bf16");
  command->callback([options, command, tokens, &chosen] {
    const bool cpu = parse_device(options->device) == Device{};
    if (tokens->empty())
      options->tokens = cpu ? std::vector<int64_t>{1, 16, 512} : std::vector<int64_t>{1, 8, 16, 32, 64, 256, 1024};
    if (!cpu && command->get_option("--dtype")->empty()) options->dtype = DType::kF16;
    chosen = [options, cpu] { return cpu ? run(*options) : bench_cuda(*options); };
  });
}

}  // namespace flute::cli
