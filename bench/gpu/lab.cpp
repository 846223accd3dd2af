// The decode laboratory: checks the kernels against float64, then times them beside the floor and cuBLAS.
//   lab check <draws> <seed> [card=A6000]   random shapes, formats, plans (of another card, if named); fails at the
//                                           first wrong answer
//   lab shapes                              all shapes of tests/shapes.hpp, formats, numbers of tokens, by turns fp16
//                                           and bf16
//   lab instances [<part>/<parts>]          every kernel that is built, once, on a tiny awkward case: for sanitizers
//   lab time <cases> > results.json         one case a line, key=value pairs (see README.md)
//   lab once <case>                         a few launches, for a profiler
//   lab mma                                 rate of the tensor-core instruction
//   lab plan <case> [card=A6000]            the plan, in words; needs no GPU
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "lab.hpp"

namespace flute::cuda::lab {
namespace {

int run(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  std::string words;
  for (int i = 2; i < argc; ++i) words += std::string(argv[i]) + " ";
  const Keys keys = parse(words);
  const bool card = keys.count("card") != 0;
  if (mode == "plan") {
    std::printf("%s\n", describe(to_case(keys), limits_of(card ? keys.at("card") : "H100")).c_str());
    return 0;
  }
  const DeviceLimits limits = card ? limits_of(keys.at("card")) : opened_device(0).limits;
  if (mode == "check" && argc >= 4) return run_check(std::atoi(argv[2]), std::strtoull(argv[3], nullptr, 10), limits);
  if (mode == "shapes") return run_shapes(limits);
  if (mode == "instances") {
    int part = 1, parts = 1;
    if (argc > 2 && (std::sscanf(argv[2], "%d/%d", &part, &parts) != 2 || part < 1 || part > parts)) return -1;
    return run_instances(part, parts, limits);
  }
  if (mode == "mma") return run_mma();
  if (mode == "time" && argc == 3) return run_time(argv[2], limits);
  if (mode == "once") return run_once(to_case(keys), limits);
  return -1;
}

}  // namespace
}  // namespace flute::cuda::lab

int main(int argc, char** argv) {
  try {
    const int status = flute::cuda::lab::run(argc, argv);
    if (status >= 0) return status;
    std::fprintf(stderr,
                 "usage: lab check <draws> <seed> [card=A6000] | lab shapes | lab instances [<part>/<parts>] | lab "
                 "time <cases> | "
                 "lab once <key=value>... | lab mma | lab plan <key=value>...\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "lab: %s\n", error.what());
  }
  return 2;
}
