#include "io/checkpoint.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/checked.hpp"
#include "base/fail.hpp"
#include "io/files.hpp"

namespace flute::io {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kPackedSuffix = ".weight_packed";
constexpr const char* kScaleSuffix = ".weight_scale";
constexpr const char* kCodebookSuffix = ".weight_codebook";
constexpr const char* kOffsetSuffix = ".weight_offset";

/// The shard an index names, as a path below the folder.
fs::path checked_shard_name(const std::string& name, const std::string& tensor, const fs::path& index) {
  const fs::path shard(name);
  const bool inside = !name.empty() && name.find('\0') == name.npos && shard.is_relative() && shard.has_filename() &&
                      std::find(shard.begin(), shard.end(), "..") == shard.end();
  if (!inside) {
    fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': expected a file name inside the folder, found '{}'",
         index.string(), printable(tensor), printable(name));
  }
  return shard.lexically_normal();
}

/// tensor -> shard of model.safetensors.index.json.
std::vector<std::pair<std::string, fs::path>> read_index(const fs::path& path) {
  const Json index = read_json_file(path);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object()) {
    fail(ErrorCode::kInvalidFormat, "{}: expected an object with key 'weight_map', found {}", path.string(),
         describe(index));
  }
  std::vector<std::pair<std::string, fs::path>> result;
  for (const auto& item : map->items()) {
    if (!item.value().is_string()) {
      fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': expected a file name, found {}", path.string(),
           printable(item.key()), describe(item.value()));
    }
    result.emplace_back(item.key(), checked_shard_name(item.value().get<std::string>(), item.key(), path));
  }
  return result;
}

std::vector<SafetensorsFile> open_shards(const fs::path& folder) {
  std::vector<SafetensorsFile> shards;
  const fs::path single = folder / "model.safetensors";
  const fs::path index_path = folder / "model.safetensors.index.json";
  if (path_exists(single)) {
    shards.push_back(SafetensorsFile::open(single));
    return shards;
  }
  if (!path_exists(index_path)) {
    fail(ErrorCode::kIo, "{}: expected model.safetensors or model.safetensors.index.json in this folder, found neither",
         folder.string());
  }
  const auto index = read_index(index_path);
  std::map<fs::path, std::set<std::string_view>> names;  // of each shard's tensors
  for (const auto& [tensor, shard] : index) {
    if (names.contains(shard)) continue;
    if (!path_exists(folder / shard)) {
      fail(ErrorCode::kIo, "{}: tensor '{}': expected it in shard {}, found no such file", index_path.string(),
           printable(tensor), printable((folder / shard).string()));
    }
    names[shard];
  }
  for (auto& [shard, tensors] : names) {
    shards.push_back(SafetensorsFile::open(folder / shard));
    for (const TensorView& tensor : shards.back().tensors()) tensors.insert(tensor.name);
  }
  for (const auto& [tensor, shard] : index) {
    if (!names[shard].contains(tensor)) {
      fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': expected it in this shard as the index says, found none",
           (folder / shard).string(), printable(tensor));
    }
  }
  return shards;
}

}  // namespace

struct Checkpoint::Impl {
  struct Entry {
    const TensorView* tensor;
    const SafetensorsFile* file;
  };
  fs::path path;
  Json config;
  std::optional<QuantizationConfig> quantization;
  std::vector<SafetensorsFile> shards;
  std::unordered_map<std::string_view, Entry> tensors;  // keys lie in the shards
  std::vector<std::string> quantized_layers;

  fs::path config_path() const { return (is_folder(path) ? path : path.parent_path()) / "config.json"; }
  const Entry& entry(std::string_view name) const;
  const TensorView& part(const std::string& prefix, const char* suffix, std::string_view dtype) const;
};

Checkpoint Checkpoint::open(const fs::path& path) {
  if (!path_exists(path)) {
    fail(ErrorCode::kIo, "{}: expected a checkpoint folder or a .safetensors file, found nothing", path.string());
  }
  std::vector<SafetensorsFile> shards;
  if (is_folder(path)) {
    shards = open_shards(path);
  } else {
    shards.push_back(SafetensorsFile::open(path));
  }
  const fs::path config_path = (is_folder(path) ? path : path.parent_path()) / "config.json";
  return from_parts(path, path_exists(config_path) ? read_json_file(config_path) : Json(), std::move(shards));
}

Checkpoint Checkpoint::from_parts(const fs::path& path, Json config, std::vector<SafetensorsFile> shards) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->config = std::move(config);
  impl->shards = std::move(shards);
  if (!impl->config.is_null() && !impl->config.is_object()) {
    fail(ErrorCode::kInvalidFormat, "{}: expected an object, found {}", impl->config_path().string(),
         describe(impl->config));
  }
  if (has_flute_quantization(impl->config)) {
    impl->quantization = parse_quantization_config(impl->config, impl->config_path().string());
  }
  for (const SafetensorsFile& file : impl->shards) {
    for (const TensorView& tensor : file.tensors()) {
      const auto [other, added] = impl->tensors.emplace(tensor.name, Impl::Entry{&tensor, &file});
      if (!added) {
        fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': expected it in one shard only, found it also in {}",
             file.path().string(), printable(tensor.name), other->second.file->path().string());
      }
      if (impl->quantization && tensor.name.ends_with(kPackedSuffix)) {
        impl->quantized_layers.push_back(tensor.name.substr(0, tensor.name.size() - std::strlen(kPackedSuffix)));
      }
    }
  }
  return Checkpoint(std::move(impl));
}

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

const fs::path& Checkpoint::path() const { return impl_->path; }
fs::path Checkpoint::folder() const { return impl_->config_path().parent_path(); }
const Json& Checkpoint::config() const { return impl_->config; }
const std::vector<SafetensorsFile>& Checkpoint::shards() const { return impl_->shards; }
const std::vector<std::string>& Checkpoint::quantized_layers() const { return impl_->quantized_layers; }
const QuantizationConfig* Checkpoint::quantization() const {
  return impl_->quantization ? &*impl_->quantization : nullptr;
}

const Checkpoint::Impl::Entry& Checkpoint::Impl::entry(std::string_view name) const {
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    fail(ErrorCode::kInvalidFormat, "{}: expected tensor '{}', found none", path.string(), printable(name));
  }
  return found->second;
}

const TensorView* Checkpoint::find(std::string_view name) const {
  const auto found = impl_->tensors.find(name);
  return found == impl_->tensors.end() ? nullptr : found->second.tensor;
}
const TensorView& Checkpoint::at(std::string_view name) const { return *impl_->entry(name).tensor; }
const fs::path& Checkpoint::file_of(std::string_view name) const { return impl_->entry(name).file->path(); }

namespace {

std::string shape_text(const TensorView& tensor) { return fmt::format("[{}]", fmt::join(tensor.shape, ", ")); }

/// Throws unless `tensor` has one of the shapes.
void expect_shape(const TensorView& tensor, const fs::path& file, std::string_view meaning,
                  const std::vector<std::vector<int64_t>>& shapes) {
  if (std::find(shapes.begin(), shapes.end(), tensor.shape) != shapes.end()) return;
  std::string expected;
  for (const auto& shape : shapes) {
    expected += fmt::format("{}[{}]", expected.empty() ? "" : " or ", fmt::join(shape, ", "));
  }
  fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': expected shape {} ({}), found {}", file.string(),
       printable(tensor.name), expected, meaning, shape_text(tensor));
}

void expect_dtype(const TensorView& tensor, const fs::path& file, std::string_view dtype) {
  if (tensor.dtype != dtype) {
    fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': expected dtype {}, found {}", file.string(),
         printable(tensor.name), dtype, tensor.dtype);
  }
}

}  // namespace

std::string_view Checkpoint::layer_of(std::string_view name) const {
  if (!is_quantized()) return {};
  for (const std::string_view suffix : {kPackedSuffix, kScaleSuffix, kCodebookSuffix, kOffsetSuffix}) {
    if (!name.ends_with(suffix)) continue;
    const std::string_view prefix = name.substr(0, name.size() - suffix.size());
    return find(std::string(prefix) + kPackedSuffix) == nullptr ? std::string_view() : prefix;
  }
  return {};
}

PackedView Checkpoint::packed_layer(std::string_view prefix, bool check_values) const {
  if (!impl_->quantization) {
    fail(ErrorCode::kInvalidArgument, "{}: expected a quantized checkpoint, found one without flute's config",
         path().string());
  }
  const auto& settings = impl_->quantization->layer(prefix);
  const std::string name(prefix);
  const Impl::Entry& packed = impl_->entry(name + kPackedSuffix);
  const Impl::Entry& scale = impl_->entry(name + kScaleSuffix);
  const Impl::Entry& codebook = impl_->entry(name + kCodebookSuffix);
  const std::string settings_text = fmt::format("{} bits, group size {}", settings.bits, settings.group_size);

  expect_dtype(*packed.tensor, packed.file->path(), "I32");
  PackedView view;
  view.bits = settings.bits;
  view.group_size = settings.group_size;
  const auto& shape = packed.tensor->shape;
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1 || shape[1] % view.bits != 0 ||
      !checked_mul(shape[1] / view.bits, 32)) {
    fail(ErrorCode::kInvalidFormat, "{}: tensor '{}': expected shape [N, K / 32 * {}] ({}), found {}",
         packed.file->path().string(), printable(packed.tensor->name), view.bits, settings_text,
         shape_text(*packed.tensor));
  }
  view.n = shape[0];
  view.k = shape[1] / view.bits * 32;
  view.codes = {reinterpret_cast<const uint32_t*>(packed.tensor->data.data()), packed.tensor->data.size() / 4};

  view.scale_dtype = float_dtype(*scale.tensor, scale.file->path());
  expect_shape(*scale.tensor, scale.file->path(), settings_text, {{view.n, view.groups()}});
  view.scales = scale.tensor->data.data();

  const int64_t entries = int64_t{1} << view.bits;
  expect_dtype(*codebook.tensor, codebook.file->path(), "F32");
  expect_shape(*codebook.tensor, codebook.file->path(), settings_text, {{entries}, {view.n, entries}});
  view.codebook = {reinterpret_cast<const float*>(codebook.tensor->data.data()), codebook.tensor->data.size() / 4};

  if (find(name + kOffsetSuffix) != nullptr) {
    const Impl::Entry& offset = impl_->entry(name + kOffsetSuffix);
    expect_dtype(*offset.tensor, offset.file->path(), scale.tensor->dtype);
    expect_shape(*offset.tensor, offset.file->path(), settings_text, {{view.n, view.groups()}});
    view.offsets = offset.tensor->data.data();
  }
  try {
    validate(view, fmt::format("{}: layer '{}'", packed.file->path().string(), printable(prefix)), check_values);
  } catch (const Error& error) {
    fail(ErrorCode::kInvalidFormat, "{}", error.what());  // what a caller may not pass, a file may not hold
  }
  return view;
}

}  // namespace flute::io
