#include "model/bpe.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "model/unicode.hpp"

namespace flute::model {

bool Vocabulary::add(std::string token, int32_t id) {
  const auto index = static_cast<size_t>(id);
  if (index < by_id_.size() && by_id_[index] != nullptr) return false;
  if (ids_.contains(token)) return false;
  const std::string& stored = tokens_.emplace_back(std::move(token));
  ids_.emplace(stored, id);
  if (index >= by_id_.size()) by_id_.resize(index + 1);
  by_id_[index] = &stored;
  return true;
}

int32_t Vocabulary::find(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? -1 : found->second;
}

const std::string* Vocabulary::token(int32_t id) const {
  return id >= 0 && id < end_id() ? by_id_[static_cast<size_t>(id)] : nullptr;
}

Bpe::Bpe(const Vocabulary& vocabulary, const std::vector<Merge>& merges, const BpeOptions& options)
    : vocabulary_(&vocabulary), options_(options) {
  for (uint32_t c = 0; c < low_char_ids_.size(); ++c) {
    const std::string text = c < 0x80
                                 ? std::string{static_cast<char>(c)}
                                 : std::string{static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
    low_char_ids_[c] = vocabulary.find(text);
  }
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte)
    byte_ids_[byte] = vocabulary.find(fmt::format("<0x{:02X}>", byte));

  // At most two entries a merge, in practice little more than one: the table has free slots in any case.
  const size_t slots = std::bit_ceil(2 * merges.size() + 16);
  table_.resize(slots);
  table_shift_ = 64 - std::countr_zero(slots);
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right, result] = merges[rank];
    Pair& pair = slot(left, right);
    pair.rank = static_cast<uint32_t>(rank);
    pair.result = result;
    if (is_stand_in(left) || is_stand_in(right)) divisible_ = false;
    // Where this merge happens, the last character of `left` meets the first one of `right`.
    const std::string_view left_text = *vocabulary.token(left), right_text = *vocabulary.token(right);
    if (left_text.empty() || right_text.empty()) continue;
    const int32_t last = char_id(left_text.substr(left_text.size() - last_char_bytes(left_text)));
    const int32_t first = char_id(right_text.substr(0, char_bytes(right_text)));
    if (last >= 0 && first >= 0) slot(last, first);
  }
}

bool Bpe::is_stand_in(int32_t id) const {
  return id == options_.unknown_id || std::find(byte_ids_.begin(), byte_ids_.end(), id) != byte_ids_.end();
}

Bpe::Pair& Bpe::slot(int32_t left, int32_t right) {
  const uint64_t key = uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  size_t i = (key * 0x9E3779B97F4A7C15u) >> table_shift_;  // Fibonacci hashing
  while (table_[i].key != kNoKey && table_[i].key != key) i = (i + 1) & (table_.size() - 1);
  table_[i].key = key;
  return table_[i];
}

const Bpe::Pair* Bpe::find(int32_t left, int32_t right) const {
  const uint64_t key = uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  size_t i = (key * 0x9E3779B97F4A7C15u) >> table_shift_;
  while (table_[i].key != kNoKey) {
    if (table_[i].key == key) return &table_[i];
    i = (i + 1) & (table_.size() - 1);
  }
  return nullptr;
}

int32_t Bpe::char_id(std::string_view character) const {
  const char32_t c = first_char(character);
  return c < low_char_ids_.size() ? low_char_ids_[c] : vocabulary_->find(character);
}

void Bpe::append_symbols(std::string_view piece, std::vector<Symbol>& symbols) const {
  bool pending_unknown = false;
  const auto add = [&symbols](int32_t id) { symbols.push_back({id, -1, -1}); };
  const auto all_bytes_known = [this](std::string_view character) {
    return std::all_of(character.begin(), character.end(),
                       [this](char byte) { return byte_ids_[static_cast<unsigned char>(byte)] >= 0; });
  };
  while (!piece.empty()) {
    const std::string_view character = piece.substr(0, char_bytes(piece));
    piece.remove_prefix(character.size());
    if (const int32_t id = char_id(character); id >= 0) {
      if (pending_unknown) add(options_.unknown_id);
      pending_unknown = false;
      add(id);
    } else if (options_.byte_fallback && all_bytes_known(character)) {
      for (const char byte : character) add(byte_ids_[static_cast<unsigned char>(byte)]);
    } else if (options_.unknown_id >= 0) {
      // An unknown character waits for the next known one, also across bytes: the reference implementation's order.
      if (pending_unknown && !options_.fuse_unknown) add(options_.unknown_id);
      pending_unknown = true;
    }
  }
  if (pending_unknown) add(options_.unknown_id);
}

void Bpe::encode(std::string_view piece, Workspace& workspace, std::vector<int32_t>& ids) const {
  if (options_.ignore_merges) {
    if (const int32_t id = vocabulary_->find(piece); id >= 0) {
      ids.push_back(id);
      return;
    }
  }
  std::vector<Symbol>& symbols = workspace.symbols;
  symbols.clear();
  append_symbols(piece, symbols);
  // Neighbours that never end up inside one token part the piece: what happens on one side cannot matter on the other.
  // So the queue stays short, and an ordinary text takes linear time.
  size_t begin = 0;
  workspace.heap.clear();
  for (size_t i = 0; i < symbols.size(); ++i) {
    const Pair* pair = i + 1 < symbols.size() ? find(symbols[i].id, symbols[i + 1].id) : nullptr;
    if (i + 1 == symbols.size() || (pair == nullptr && divisible_)) {
      merge(workspace, begin, i + 1, ids);
      begin = i + 1;
    } else if (pair != nullptr && pair->rank != kNoRank) {
      workspace.heap.push_back({pair->rank, static_cast<int32_t>(i), pair->result});
    }
  }
}

void Bpe::merge(Workspace& workspace, size_t begin, size_t end, std::vector<int32_t>& ids) const {
  Symbol* const symbols = workspace.symbols.data();
  std::vector<Candidate>& heap = workspace.heap;
  for (size_t i = begin; i < end; ++i) {
    symbols[i].previous = i == begin ? -1 : static_cast<int32_t>(i - 1);
    symbols[i].next = i + 1 == end ? -1 : static_cast<int32_t>(i + 1);
  }
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto consider = [&](int32_t left, int32_t right) {
    const Pair* pair = find(symbols[left].id, symbols[right].id);
    if (pair == nullptr || pair->rank == kNoRank) return;
    heap.push_back({pair->rank, left, pair->result});
    std::push_heap(heap.begin(), heap.end(), later);
  };
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate top = heap.back();
    heap.pop_back();
    Symbol& left = symbols[top.position];
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    const Pair* pair = find(left.id, right.id);
    if (pair == nullptr || pair->rank == kNoRank || pair->result != top.result)
      continue;  // the neighbours have changed
    left.id = top.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) {
      symbols[left.next].previous = top.position;
      consider(top.position, left.next);
    }
    if (left.previous >= 0) consider(left.previous, top.position);
  }
  for (size_t i = begin; i < end; ++i) {
    if (symbols[i].id >= 0) ids.push_back(symbols[i].id);
  }
}

}  // namespace flute::model
