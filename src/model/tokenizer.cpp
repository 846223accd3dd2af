#include "model/tokenizer.hpp"

#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/fail.hpp"
#include "io/json.hpp"
#include "model/tokenizer_parts.hpp"
#include "model/unicode.hpp"

namespace flute::model {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;  // positions in a piece fit into 31 bits, its alphabet takes 2 bytes

/// Ids of short pieces already met. Words repeat: at Llama-3's vocabulary this is most of the speed.
class PieceCache {
 public:
  /// Appends the ids of `piece` and returns true where they are known.
  bool find(std::string_view piece, std::vector<int32_t>& ids) const {
    const auto found = pieces_.find(piece);
    if (found == pieces_.end()) return false;
    ids.insert(ids.end(), found->second.begin(), found->second.end());
    return true;
  }
  void add(std::string_view piece, std::span<const int32_t> ids) {
    if (piece.size() <= kMaxPieceBytes && pieces_.size() < kMaxPieces) {
      pieces_.emplace(piece, std::vector<int32_t>(ids.begin(), ids.end()));
    }
  }

 private:
  static constexpr size_t kMaxPieceBytes = 64;
  static constexpr size_t kMaxPieces = size_t{1} << 16;
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>> pieces_;
};

/// The byte that a token like <0x0A> stands for, -1 where it stands for itself.
int fallback_byte(std::string_view token) {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
  };
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const int high = digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/// The bytes that a token of a byte-level vocabulary stands for.
std::string letters_to_bytes(std::string_view token) {
  std::string bytes;
  for (size_t i = 0; i < token.size(); i += char_bytes(token.substr(i))) {
    const int byte = letter_byte(first_char(token.substr(i)));
    if (byte < 0) return std::string(token);  // an added token with characters of its own
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerParts from)
      : parts(std::move(from)), bpe(parts.vocabulary, std::exchange(parts.merges, {}), parts.bpe) {
    for (const AddedToken& token : parts.added) {
      const std::string normalized = token.normalized ? normalize(token.content, parts.normalizer) : token.content;
      (token.normalized ? normalized_matcher : matcher).add(normalized, token);
      added_ids.emplace(token.content, token.id);
      added_texts.emplace(token.id, normalized);
    }
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  /// The token's text for decoding; null for an unknown id.
  const std::string* text(int32_t id) const {
    const auto added = added_texts.find(id);
    return added != added_texts.end() ? &added->second : parts.vocabulary.token(id);
  }
  bool is_special(const std::string& token) const { return parts.special.contains(token); }

  /// Appends the ids of a text without added tokens.
  void encode_text(std::string_view text, PieceCache& cache, Bpe::Workspace& workspace,
                   std::vector<int32_t>& ids) const {
    std::vector<std::string_view> pieces = {text}, split;
    for (const SplitPattern& pattern : parts.pre_tokenizer.splits) {
      split.clear();
      for (const std::string_view piece : pieces) pattern.split(piece, split);
      pieces.swap(split);
    }
    if (!parts.pre_tokenizer.byte_level) {
      for (const std::string_view piece : pieces) bpe.encode(piece, workspace, ids);
      return;
    }
    std::string letters;
    for (const std::string_view piece : pieces) {
      if (cache.find(piece, ids)) continue;
      letters.clear();
      for (const char byte : piece) letters += byte_letter(static_cast<unsigned char>(byte));
      const size_t before = ids.size();
      bpe.encode(letters, workspace, ids);
      cache.add(piece, std::span(ids).subspan(before));
    }
  }

  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const {
    // One caller at a time has the shared cache, others that come meanwhile a passing one.
    const std::unique_lock lock(cache_mutex, std::try_to_lock);
    PieceCache passing;
    PieceCache& cache = lock.owns_lock() ? shared_cache : passing;
    Bpe::Workspace workspace;
    std::vector<int32_t> ids;
    std::vector<TextPart> outer, inner;
    matcher.split(text, outer);
    for (const TextPart& part : outer) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      const std::string normalized = normalize(part.text, parts.normalizer);
      inner.clear();
      normalized_matcher.split(normalized, inner);
      for (const TextPart& piece : inner) {
        if (piece.id >= 0) {
          ids.push_back(piece.id);
        } else {
          encode_text(piece.text, cache, workspace, ids);
        }
      }
    }
    for (const Template& post : parts.templates) {
      std::vector<int32_t> processed;
      for (const TemplatePiece& piece : post) {
        const std::vector<int32_t>& source = piece.is_text ? ids : piece.ids;
        if (piece.is_text || add_special_tokens) processed.insert(processed.end(), source.begin(), source.end());
      }
      ids.swap(processed);
    }
    return ids;
  }

  TokenizerParts parts;
  Bpe bpe;
  AddedTokenMatcher matcher, normalized_matcher;
  std::unordered_map<std::string_view, int32_t> added_ids;
  std::unordered_map<int32_t, std::string> added_texts;  // as in the text that the model sees
  mutable std::mutex cache_mutex;
  mutable PieceCache shared_cache;
};

Tokenizer Tokenizer::load(const std::filesystem::path& tokenizer_json) {
  return from_json(io::read_json_file(tokenizer_json), tokenizer_json.string());
}

Tokenizer Tokenizer::from_json(const nlohmann::ordered_json& root, const std::string& what) {
  return Tokenizer(std::make_unique<Impl>(parse_tokenizer(root, what)));
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  if (text.size() >= kMaxTextBytes) {
    fail(ErrorCode::kInvalidArgument, "text to encode: expected less than {} bytes, found {}", kMaxTextBytes,
         text.size());
  }
  if (is_well_formed(text)) return impl_->encode(text, add_special_tokens);
  return impl_->encode(to_well_formed(text), add_special_tokens);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  StreamDecoder stream(*this, skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

int32_t Tokenizer::vocab_size() const {
  int32_t end = impl_->parts.vocabulary.end_id();
  for (const AddedToken& token : impl_->parts.added) end = std::max(end, token.id + 1);
  return end;
}

int32_t Tokenizer::token_to_id(std::string_view token) const {
  const auto added = impl_->added_ids.find(token);
  return added != impl_->added_ids.end() ? added->second : impl_->parts.vocabulary.find(token);
}

bool Tokenizer::is_special(int32_t id) const {
  const std::string* token = impl_->text(id);
  return token != nullptr && impl_->is_special(*token);
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer.impl_.get()),
      skip_special_tokens_(skip_special_tokens),
      to_strip_(tokenizer_->parts.decoder.strip_count) {}

std::string StreamDecoder::push(int32_t id) {
  const std::string* token = tokenizer_->text(id);
  if (token == nullptr || (skip_special_tokens_ && tokenizer_->is_special(*token))) return {};
  const Decoder& decoder = tokenizer_->parts.decoder;
  const bool first = !std::exchange(started_, true);
  if (decoder.kind == Decoder::Kind::kNone) return first ? *token : " " + *token;
  if (decoder.kind == Decoder::Kind::kByteLevel) {
    bytes_ += letters_to_bytes(*token);
    const size_t complete = complete_prefix(bytes_);
    std::string text = to_well_formed(std::string_view(bytes_).substr(0, complete));
    bytes_.erase(0, complete);
    return text;
  }
  std::string text = normalize(*token, decoder.replaces);
  if (const int byte = decoder.byte_fallback ? fallback_byte(text) : -1; byte >= 0) {
    bytes_ += static_cast<char>(byte);  // the whole run of bytes decides what it is
    return {};
  }
  return strip(take_bytes() + text);
}

std::string StreamDecoder::finish() {
  std::string text = strip(take_bytes());
  started_ = false;
  to_strip_ = tokenizer_->parts.decoder.strip_count;
  return text;
}

std::string StreamDecoder::take_bytes() {
  const std::string bytes = std::exchange(bytes_, {});
  if (tokenizer_->parts.decoder.kind == Decoder::Kind::kByteLevel || is_well_formed(bytes))
    return to_well_formed(bytes);
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) text += "\xEF\xBF\xBD";  // U+FFFD for each byte of the run
  return text;
}

std::string StreamDecoder::strip(std::string text) {
  const std::string& unwanted = tokenizer_->parts.decoder.strip;
  for (; to_strip_ > 0 && !text.empty(); --to_strip_) {
    if (!text.starts_with(unwanted)) {
      to_strip_ = 0;
      break;
    }
    text.erase(0, unwanted.size());
  }
  return text;
}

}  // namespace flute::model
