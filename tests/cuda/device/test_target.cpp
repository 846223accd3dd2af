// Which of the library's targets the tests of this program run: CUDA_FORCE_PTX_JIT=1 chooses the one for cards before
// Hopper.
#include <cstdlib>
#include <iostream>

#include "cuda/device.hpp"
#include "cuda/device/device_test.hpp"

namespace flute {
namespace {

class CudaTarget : public OnDevice {};

// A run that is meant to test the other target must not test this one again.
TEST_F(CudaTarget, IsTheOneAskedFor) {
  cudaDeviceProp properties = {};
  succeed(cudaGetDeviceProperties(&properties, 0));
  const int target = cuda::kernel_target(0);
  std::cout << "CUDA device 0: " << properties.name << ", kernels for compute capability " << target << std::endl;
  const char* forced = std::getenv("CUDA_FORCE_PTX_JIT");
  const bool hopper = properties.major == 9 && (forced == nullptr || std::string(forced) != "1");
  EXPECT_EQ(target, hopper ? 90 : 80);
}

}  // namespace
}  // namespace flute
