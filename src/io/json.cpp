#include "io/json.hpp"

#include <unordered_set>
#include <utility>
#include <vector>

#include "base/fail.hpp"
#include "io/files.hpp"

namespace flute::io {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxDepth = 100;

/// Builds the document itself because the stock builder searches an object for every key it adds (quadratic for ordered
/// objects; a vocabulary has 10^5 keys), silently keeps the last of equal keys, and nests without limit.
class Builder : public nlohmann::json_sax<Json> {
 public:
  Builder(Json& root, std::string& error) : root_(root), error_(error) {}

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(int64_t value) override { return add(value); }
  bool number_unsigned(uint64_t value) override { return add(value); }
  bool number_float(double value, const std::string&) override { return add(value); }
  bool string(std::string& value) override { return add(std::move(value)); }
  bool binary(Json::binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(std::string& value) override {
    if (!open_.back().keys.insert(value).second) {
      error_ = fmt::format("expected each key of an object once, found '{}' twice", printable(value));
      return false;
    }
    key_ = std::move(value);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error …; last read: '…'": keep the
    // middle.
    std::string_view detail = error.what();
    if (const size_t id = detail.find("] "); id != detail.npos) detail.remove_prefix(id + 2);
    error_ = fmt::format("not valid JSON at byte {}: {}", position, detail.substr(0, detail.find("; last read")));
    return false;
  }

 private:
  struct Open {
    Json* value;
    std::unordered_set<std::string> keys;
  };

  Json* place(Json&& value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back().value;
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    auto& members = parent.get_ref<Json::object_t&>();
    members.Json::object_t::Container::emplace_back(std::move(key_), std::move(value));
    return &members.back().second;
  }

  bool add(Json&& value) {
    place(std::move(value));
    return true;
  }

  bool open(Json&& value) {
    if (open_.size() == kMaxDepth) {
      error_ = fmt::format("expected at most {} levels of nesting, found more", kMaxDepth);
      return false;
    }
    Json* placed = place(std::move(value));
    open_.push_back({placed, {}});
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  Json& root_;
  std::string& error_;
  std::vector<Open> open_;
  std::string key_;
};

}  // namespace

Json parse_json(std::string_view text, const std::string& what) {
  Json root;
  std::string error;
  Builder builder(root, error);
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) fail(ErrorCode::kInvalidFormat, "{}: {}", what, error);
  return root;
}

Json read_json_file(const std::filesystem::path& path, size_t max_bytes) {
  return parse_json(read_file(path, max_bytes), path.string());
}

std::string describe(const Json& value) {
  return printable(value.dump(-1, ' ', true, Json::error_handler_t::replace), 80);
}

}  // namespace flute::io
