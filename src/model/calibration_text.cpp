#include "model/calibration_text.hpp"

#include <algorithm>

#include "base/fail.hpp"
#include "model/model.hpp"
#include "model/tokenizer.hpp"
#include "model/unicode.hpp"

namespace flute::model {

int64_t calibration_window(const io::ModelConfig& config) {
  return std::min<int64_t>(512, config.max_position_embeddings);
}

std::vector<int32_t> calibration_ids(const Blocks& blocks, const CalibrationText& calibration) {
  const int64_t length = calibration_window(blocks.config);
  if (calibration.tokens < length) {
    fail(ErrorCode::kInvalidArgument, "calibration: expected at least one window of {} tokens, found {}", length,
         calibration.tokens);
  }
  if (!is_well_formed(calibration.text)) {
    fail(ErrorCode::kInvalidArgument, "{}: expected a text in UTF-8, found other bytes", calibration.name);
  }
  const Tokenizer tokenizer = Tokenizer::load(blocks.checkpoint.folder() / "tokenizer.json");
  const std::vector<int32_t> ids = encode_documents(tokenizer, blocks.config, calibration.text);
  blocks.check(ids);
  const int64_t there = static_cast<int64_t>(ids.size()) / length;
  if (there == 0) {
    fail(ErrorCode::kInvalidArgument, "{}: expected at least one window of {} tokens, found {} tokens",
         calibration.name, length, ids.size());
  }
  const int64_t windows = std::min(there, calibration.tokens / length);
  std::vector<int32_t> chosen;
  for (int64_t i = 0; i < windows; ++i) {
    const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(i * there / windows * length);
    chosen.insert(chosen.end(), begin, begin + static_cast<std::ptrdiff_t>(length));
  }
  return chosen;
}

}  // namespace flute::model
