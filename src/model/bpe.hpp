#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace flute::model {

/// Tokens and their ids, in both directions.
class Vocabulary {
 public:
  void reserve(size_t tokens) { ids_.reserve(tokens); }
  /// False when the token or the id is taken already.
  bool add(std::string token, int32_t id);
  int32_t find(std::string_view token) const;                             ///< -1 when absent
  const std::string* token(int32_t id) const;                             ///< null when absent
  size_t size() const { return tokens_.size(); }                          ///< number of tokens
  int32_t end_id() const { return static_cast<int32_t>(by_id_.size()); }  ///< largest id + 1

 private:
  std::deque<std::string> tokens_;  // a deque: the views and pointers below stay valid
  std::unordered_map<std::string_view, int32_t> ids_;
  std::vector<const std::string*> by_id_;
};

struct BpeOptions {
  int32_t unknown_id = -1;     ///< of a character that is not in the vocabulary; -1: it is dropped
  bool fuse_unknown = false;   ///< one id for a run of unknown characters
  bool byte_fallback = false;  ///< unknown characters become their bytes' tokens <0x00>..<0xFF> where these exist
  bool ignore_merges = false;  ///< a piece that is a token is that token, whatever the merges say
};

/// Byte-pair encoding of one piece of text: its characters' ids, then the merge of lowest rank (of equal ranks the
/// leftmost) until none applies. O(n log n).
class Bpe {
 public:
  struct Merge {
    int32_t left, right, result;
  };
  /// `merges` in the order of their rank; of equal pairs the last counts. `vocabulary` must outlive this.
  Bpe(const Vocabulary& vocabulary, const std::vector<Merge>& merges, const BpeOptions& options);

  /// Memory that calls share so as not to allocate their own.
  struct Workspace;
  /// Appends the ids of `piece` (well-formed UTF-8).
  void encode(std::string_view piece, Workspace& workspace, std::vector<int32_t>& ids) const;

 private:
  static constexpr uint32_t kNoRank = UINT32_MAX;
  static constexpr uint64_t kNoKey = UINT64_MAX;
  /// What is known about two neighbouring ids. A pair of characters that is in the table without a rank cannot be
  /// merged itself but may end up inside a token; a pair that is not in the table never does.
  struct Pair {
    uint64_t key = kNoKey;
    uint32_t rank = kNoRank;
    int32_t result = -1;
  };
  struct Symbol {
    int32_t id;  // -1: merged into its left neighbour
    int32_t previous, next;
  };
  struct Candidate {
    uint32_t rank;
    int32_t position;
    int32_t result;
  };

  Pair& slot(int32_t left, int32_t right);
  const Pair* find(int32_t left, int32_t right) const;
  int32_t char_id(std::string_view character) const;
  bool is_stand_in(int32_t id) const;  ///< of an unknown character or of a byte of one
  void append_symbols(std::string_view piece, std::vector<Symbol>& symbols) const;
  void merge(Workspace& workspace, size_t begin, size_t end, std::vector<int32_t>& ids) const;

  const Vocabulary* vocabulary_;
  BpeOptions options_;
  std::vector<Pair> table_;  // open addressing; the size is a power of two
  int table_shift_ = 0;
  std::array<int32_t, 512> low_char_ids_;  // ids of the characters below U+0200, the byte-level alphabet among them
  std::array<int32_t, 256> byte_ids_;      // of <0x00>..<0xFF>
  bool divisible_ = true;                  // no merge has a stand-in: every token is made of characters' own ids
};

struct Bpe::Workspace {
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
};

}  // namespace flute::model
