// A build without CUDA measures nothing.
#include "base/fail.hpp"
#include "cuda/measure/measure.hpp"

namespace flute::cuda {

namespace {

[[noreturn]] void refuse() { fail(ErrorCode::kUnsupported, "this build has no CUDA backend"); }

}  // namespace

struct Measure::Impl {};

std::string device_name(int) { refuse(); }
DeviceLimits device_limits(int) { refuse(); }

Measure::Measure(Device, const PackedView&, DType) { refuse(); }
Measure::~Measure() = default;
Measured Measure::multiply(int64_t) { refuse(); }
Times Measure::tile() { refuse(); }
Times Measure::untile() { refuse(); }
size_t Measure::copies() const { refuse(); }

}  // namespace flute::cuda
