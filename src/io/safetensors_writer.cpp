#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/checked.hpp"
#include "base/fail.hpp"
#include "io/files.hpp"
#include "io/json.hpp"
#include "io/safetensors.hpp"

namespace flute::io {

int64_t TensorPlan::bytes() const {
  const int bits = safetensors_dtype_bits(dtype);
  const auto elements = checked_product(shape);
  const auto total = elements ? checked_mul(*elements, bits) : std::nullopt;
  if (bits == 0 || !total || *total % 8 != 0) {
    fail(ErrorCode::kInvalidArgument, "tensor '{}': expected a shape of whole bytes below 2^63, found {} [{}]",
         printable(name), dtype, fmt::join(shape, ", "));
  }
  return *total / 8;
}

struct SafetensorsWriter::Impl {
  struct Slot {
    int64_t begin = 0, end = 0, written = 0;
  };
  std::filesystem::path path;
  OutputFile file;
  std::vector<Slot> slots;

  explicit Impl(const std::filesystem::path& target) : path(target), file(target) {}
};

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::span<const TensorPlan> plans)
    : impl_(std::make_unique<Impl>(path)) {
  // Wide elements first: then every tensor begins at a multiple of its element's size.
  std::vector<size_t> order(plans.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return safetensors_dtype_bits(plans[a].dtype) > safetensors_dtype_bits(plans[b].dtype);
  });

  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  auto& members = header.get_ref<nlohmann::ordered_json::object_t&>();
  impl_->slots.resize(plans.size());
  int64_t offset = 0;
  for (const size_t i : order) {
    const auto end = checked_add(offset, plans[i].bytes());
    if (!end) fail(ErrorCode::kInvalidArgument, "{}: expected less than 2^63 bytes of tensors", path.string());
    impl_->slots[i] = {offset, *end, 0};
    // Appended without the search for an equal key that operator[] makes.
    members.nlohmann::ordered_json::object_t::Container::emplace_back(
        plans[i].name,
        nlohmann::ordered_json{{"dtype", plans[i].dtype}, {"shape", plans[i].shape}, {"data_offsets", {offset, *end}}});
    offset = *end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t header_bytes = text.size();
  const auto data_begin = static_cast<int64_t>(sizeof header_bytes + header_bytes);
  for (auto& slot : impl_->slots) {
    slot.begin += data_begin;
    slot.end += data_begin;
    slot.written = slot.begin;
  }
  impl_->file.reserve(data_begin + offset);
  impl_->file.write_at(0, std::as_bytes(std::span(&header_bytes, 1)));
  impl_->file.write_at(sizeof header_bytes, std::as_bytes(std::span(text)));
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(size_t index, std::span<const std::byte> bytes) {
  auto& slot = impl_->slots.at(index);
  if (static_cast<int64_t>(bytes.size()) > slot.end - slot.written) {
    fail(ErrorCode::kInternal, "{}: tensor {}: expected at most {} more bytes, found {}", impl_->path.string(), index,
         slot.end - slot.written, bytes.size());
  }
  impl_->file.write_at(slot.written, bytes);
  slot.written += static_cast<int64_t>(bytes.size());
}

void SafetensorsWriter::finish() {
  for (size_t i = 0; i < impl_->slots.size(); ++i) {
    const auto& slot = impl_->slots[i];
    if (slot.written != slot.end) {
      fail(ErrorCode::kInternal, "{}: tensor {}: expected {} bytes, found {}", impl_->path.string(), i,
           slot.end - slot.begin, slot.written - slot.begin);
    }
  }
  impl_->file.finish();
}

}  // namespace flute::io
