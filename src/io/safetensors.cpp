#include "io/safetensors.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "base/checked.hpp"
#include "base/fail.hpp"
#include "io/files.hpp"
#include "io/json.hpp"

namespace flute::io {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files and packed codes are little-endian");

using Json = nlohmann::ordered_json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit

struct DtypeBits {
  std::string_view name;
  int bits;
};
constexpr std::array kDtypes = {
    DtypeBits{"BOOL", 8},    DtypeBits{"U8", 8},      DtypeBits{"I8", 8},      DtypeBits{"F8_E5M2", 8},
    DtypeBits{"F8_E4M3", 8}, DtypeBits{"F8_E8M0", 8}, DtypeBits{"F6_E2M3", 6}, DtypeBits{"F6_E3M2", 6},
    DtypeBits{"F4", 4},      DtypeBits{"I16", 16},    DtypeBits{"U16", 16},    DtypeBits{"F16", 16},
    DtypeBits{"BF16", 16},   DtypeBits{"I32", 32},    DtypeBits{"U32", 32},    DtypeBits{"F32", 32},
    DtypeBits{"F64", 64},    DtypeBits{"I64", 64},    DtypeBits{"U64", 64},    DtypeBits{"C64", 64},
};

/// Bytes of `shape` elements of `bits` bits; nothing on overflow or where they do not fill whole bytes.
std::optional<int64_t> tensor_bytes(std::span<const int64_t> shape, int bits) {
  const auto elements = checked_product(shape);
  const auto total = elements ? checked_mul(*elements, bits) : std::nullopt;
  if (!total || *total % 8 != 0) return std::nullopt;
  return *total / 8;
}

std::optional<int64_t> as_size(const Json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  const auto number = value.get<int64_t>();
  if (number < 0) return std::nullopt;
  return number;
}

struct Located {
  TensorView tensor;
  int64_t begin = 0, end = 0;
};

Located parse_entry(const std::string& name, const Json& entry, int64_t data_bytes, const std::string& what) {
  const std::string tensor = fmt::format("{}: tensor '{}'", what, printable(name));
  if (!entry.is_object()) {
    fail(ErrorCode::kInvalidFormat, "{}: expected an object, found {}", tensor, describe(entry));
  }
  for (const auto& item : entry.items()) {
    if (item.key() != "dtype" && item.key() != "shape" && item.key() != "data_offsets") {
      fail(ErrorCode::kInvalidFormat, "{}: expected dtype, shape and data_offsets, found '{}'", tensor,
           printable(item.key()));
    }
  }
  const auto dtype = entry.find("dtype");
  const auto shape = entry.find("shape");
  const auto offsets = entry.find("data_offsets");
  if (dtype == entry.end() || shape == entry.end() || offsets == entry.end()) {
    fail(ErrorCode::kInvalidFormat, "{}: expected dtype, shape and data_offsets, found {}", tensor, describe(entry));
  }

  Located result;
  result.tensor.name = name;
  const int bits = dtype->is_string() ? safetensors_dtype_bits(dtype->get_ref<const std::string&>()) : 0;
  if (bits == 0) {
    fail(ErrorCode::kInvalidFormat, "{}: dtype: expected one such as BF16, F16, F32 or I32, found {}", tensor,
         describe(*dtype));
  }
  result.tensor.dtype = dtype->get<std::string>();

  const auto bad_shape = [&](std::string_view why) {
    fail(ErrorCode::kInvalidFormat, "{}: shape: expected {}, found {}", tensor, why, describe(*shape));
  };
  if (!shape->is_array()) bad_shape("a list of sizes");
  for (const Json& dim : *shape) {
    const auto size = as_size(dim);
    if (!size) bad_shape("sizes that are integers from 0 to 2^63-1");
    result.tensor.shape.push_back(*size);
  }
  const auto bytes = tensor_bytes(result.tensor.shape, bits);
  if (!bytes) bad_shape("a number of whole bytes below 2^63");

  const bool is_pair = offsets->is_array() && offsets->size() == 2;
  result.begin = is_pair ? as_size((*offsets)[0]).value_or(-1) : -1;
  result.end = is_pair ? as_size((*offsets)[1]).value_or(-1) : -1;
  if (result.begin < 0 || result.end < result.begin || result.end > data_bytes) {
    fail(ErrorCode::kInvalidFormat, "{}: data_offsets: expected [begin, end] with 0 <= begin <= end <= {}, found {}",
         tensor, data_bytes, describe(*offsets));
  }
  if (result.end - result.begin != *bytes) {
    fail(ErrorCode::kInvalidFormat, "{}: data_offsets: expected {} bytes for {} {}, found {}", tensor, *bytes,
         result.tensor.dtype, describe(*shape), result.end - result.begin);
  }
  return result;
}

}  // namespace

DType float_dtype(const TensorView& tensor, const std::filesystem::path& file) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (tensor.dtype == safetensors_name(dtype)) return dtype;
  }
  fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': expected dtype F32, F16 or BF16, found {}", file.string(),
       printable(tensor.name), tensor.dtype);
}

std::string_view safetensors_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
  }
  return "?";
}

int safetensors_dtype_bits(std::string_view dtype) {
  const auto* found = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& one) { return one.name == dtype; });
  return found == kDtypes.end() ? 0 : found->bits;
}

struct SafetensorsFile::Impl {
  std::filesystem::path path;
  MappedFile map;
  std::vector<TensorView> tensors;
  std::map<std::string, std::string> metadata;
  std::vector<std::unique_ptr<std::byte[]>> copies;  // of tensors that the file does not align

  void parse(std::span<const std::byte> file);
  void parse_metadata(const Json& values);
};

void SafetensorsFile::Impl::parse_metadata(const Json& values) {
  if (!values.is_object()) {
    fail(ErrorCode::kInvalidFormat, "{}: __metadata__: expected an object of strings, found {}", path.string(),
         describe(values));
  }
  for (const auto& item : values.items()) {
    if (!item.value().is_string()) {
      fail(ErrorCode::kInvalidFormat, "{}: __metadata__: '{}': expected a string, found {}", path.string(),
           printable(item.key()), describe(item.value()));
    }
    metadata.emplace(item.key(), item.value().get<std::string>());
  }
}

void SafetensorsFile::Impl::parse(std::span<const std::byte> file) {
  const std::string what = path.string();
  uint64_t header_bytes = 0;
  if (file.size() < sizeof header_bytes) {
    fail(ErrorCode::kInvalidFormat, "{}: expected a safetensors file of at least 8 bytes, found {}", what, file.size());
  }
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes) {
    fail(ErrorCode::kInvalidFormat, "{}: header length: expected at most {} bytes, found {}", what, kMaxHeaderBytes,
         header_bytes);
  }
  if (header_bytes > file.size() - sizeof header_bytes) {
    fail(ErrorCode::kInvalidFormat, "{}: header length: expected at most the {} bytes left in the file, found {}", what,
         file.size() - sizeof header_bytes, header_bytes);
  }
  const auto data = file.subspan(sizeof header_bytes + header_bytes);
  const Json header =
      parse_json({reinterpret_cast<const char*>(file.data()) + sizeof header_bytes, header_bytes}, what + ": header");
  if (!header.is_object()) {
    fail(ErrorCode::kInvalidFormat, "{}: header: expected an object, found {}", what, describe(header));
  }

  std::vector<Located> located;
  located.reserve(header.size());
  for (const auto& item : header.items()) {
    if (item.key() == "__metadata__") {
      parse_metadata(item.value());
    } else {
      located.push_back(parse_entry(item.key(), item.value(), static_cast<int64_t>(data.size()), what));
    }
  }
  std::stable_sort(located.begin(), located.end(), [](const Located& a, const Located& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });

  int64_t covered = 0;
  for (Located& one : located) {
    if (one.begin != covered) {
      fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': data_offsets: expected to begin at {} ({}), found {}", what,
           printable(one.tensor.name), covered,
           one.begin < covered ? "it overlaps the tensor before it" : "nothing may lie between tensors", one.begin);
    }
    covered = one.end;
    one.tensor.data = data.subspan(static_cast<size_t>(one.begin), static_cast<size_t>(one.end - one.begin));
    const auto alignment = static_cast<uintptr_t>(std::max(1, safetensors_dtype_bits(one.tensor.dtype) / 8));
    if (reinterpret_cast<uintptr_t>(one.tensor.data.data()) % alignment != 0) {
      copies.push_back(std::make_unique_for_overwrite<std::byte[]>(one.tensor.data.size()));
      std::copy(one.tensor.data.begin(), one.tensor.data.end(), copies.back().get());
      one.tensor.data = {copies.back().get(), one.tensor.data.size()};
    }
    tensors.push_back(std::move(one.tensor));
  }
  if (covered != static_cast<int64_t>(data.size())) {
    fail(ErrorCode::kInvalidFormat, "{}: expected {} bytes of tensors as the header says, found {}", what, covered,
         data.size());
  }
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->map = MappedFile(path);
  impl->parse(impl->map.bytes());
  return SafetensorsFile(std::move(impl));
}

SafetensorsFile SafetensorsFile::from_bytes(std::span<const std::byte> bytes, const std::filesystem::path& path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->parse(bytes);
  return SafetensorsFile(std::move(impl));
}

SafetensorsFile::SafetensorsFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;
SafetensorsFile::~SafetensorsFile() = default;

const std::filesystem::path& SafetensorsFile::path() const { return impl_->path; }
const std::vector<TensorView>& SafetensorsFile::tensors() const { return impl_->tensors; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return impl_->metadata; }

}  // namespace flute::io
