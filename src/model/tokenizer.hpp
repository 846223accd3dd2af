#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flute::model {

/// Byte-pair encoding as tokenizer.json describes it: the two families found in Llama-3 (byte-level, split by a regular
/// expression) and Gemma-2 (byte fallback, U+2581 for the space). Gives the ids of Hugging Face `tokenizers`; the
/// file's truncation and padding are left to the caller. Immutable: any number of threads may use it.
class Tokenizer {
 public:
  /// Reads a tokenizer.json; throws kUnsupported naming the part that is of another kind, kInvalidFormat naming the
  /// part that is malformed.
  static Tokenizer load(const std::filesystem::path& tokenizer_json);
  static Tokenizer from_json(const nlohmann::ordered_json& root, const std::string& what);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of UTF-8 `text` (ill-formed bytes count as U+FFFD). `add_special_tokens` runs the post-processor (bos).
  /// Throws kInvalidArgument on a text of 1 GiB or more.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = true) const;
  /// Text of `ids`; unknown ids are skipped, special tokens too unless asked for.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = true) const;

  int32_t vocab_size() const;                         ///< largest id + 1
  int32_t token_to_id(std::string_view token) const;  ///< -1 when absent
  bool is_special(int32_t id) const;

 private:
  friend class StreamDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Streams text: each call returns the bytes that became certain with one more token (never half a character). All that
/// push() and finish() returned, put together, is what decode() makes of the ids.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens = true);
  std::string push(int32_t id);
  std::string finish();  ///< what is still held back; afterwards a new text may start

 private:
  std::string take_bytes();
  std::string strip(std::string text);

  const Tokenizer::Impl* tokenizer_;
  bool skip_special_tokens_;
  bool started_ = false;  // a token has come
  std::string bytes_;     // of tokens that are bytes, and do not make up a character yet
  size_t to_strip_ = 0;   // characters that may still go from the start of the text
};

}  // namespace flute::model
