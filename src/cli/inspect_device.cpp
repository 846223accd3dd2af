#include "cli/inspect_device.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/fail.hpp"
#include "cli/progress.hpp"
#include "cli/terminal.hpp"
#include "flute/threads.hpp"

namespace flute::cli {

DeviceReport inspect_on_device(const io::Checkpoint& checkpoint, Device device, const std::string& typed) {
  workspace_init(device, nullptr, 0);  // says so where there is no such device, whatever the layers' formats
  DeviceReport report;
  report.device = typed;
  ThreadPool threads;
  ProgressBar bar("load");
  int64_t done = 0, total = 0;
  for (const std::string& layer : checkpoint.quantized_layers()) {
    total += static_cast<int64_t>(checkpoint.packed_layer(layer, /*check_values=*/false).bytes());
  }
  for (const std::string& layer : checkpoint.quantized_layers()) {
    const PackedView view = checkpoint.packed_layer(layer);
    try {
      const Matrix matrix = Matrix::from_packed(device, {&view, 1}, {.threads = &threads});
      if (!std::equal(view.codes.begin(), view.codes.end(), matrix.to_packed(0).codes.begin())) {
        fail(ErrorCode::kInternal, "{}: expected the same codes back from {}, found others", layer, typed);
      }
      ++report.layers;
      report.bytes += matrix.bytes();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      report.refused.push_back({layer, error.what()});
    }
    done += static_cast<int64_t>(view.bytes());
    bar.update(done, total, layer);
  }
  return report;
}

nlohmann::ordered_json device_json(const DeviceReport& report) {
  nlohmann::ordered_json json;
  json["device"] = report.device;
  json["layers"] = report.layers;
  json["bytes"] = report.bytes;
  json["refused"] = nlohmann::ordered_json::array();
  for (const DeviceReport::Refusal& refusal : report.refused) {
    json["refused"].push_back({{"name", refusal.layer}, {"reason", refusal.reason}});
  }
  return json;
}

void print_device_report(const DeviceReport& report) {
  print("on {}: {} quantized layers, {:.1f} MB\n", report.device, report.layers,
        1e-6 * static_cast<double>(report.bytes));
  for (const DeviceReport::Refusal& refusal : report.refused) print("  not {}: {}\n", refusal.layer, refusal.reason);
}

}  // namespace flute::cli
