#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "flute/gemm.hpp"
#include "io/checkpoint.hpp"

namespace flute::cli {

/// What becomes of a checkpoint's quantized layers on a device.
struct DeviceReport {
  struct Refusal {
    std::string layer, reason;
  };
  std::string device;  ///< as it was typed
  int64_t layers = 0;  ///< that the device takes
  size_t bytes = 0;    ///< held there by all of them
  std::vector<Refusal> refused;
};

/// Makes a matrix of each quantized layer on the device, one after the other, and takes it back: throws kInternal
/// should a code come back changed, and whatever Matrix::from_packed throws but kUnsupported formats, which the report
/// lists.
DeviceReport inspect_on_device(const io::Checkpoint& checkpoint, Device device, const std::string& typed);

nlohmann::ordered_json device_json(const DeviceReport& report);
void print_device_report(const DeviceReport& report);

}  // namespace flute::cli
