#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/model.hpp"

namespace flute::model {

using Path = std::filesystem::path;

inline Path examples() { return Path(FLUTE_SOURCE_DIR) / "examples"; }

/// A folder of larger test data: the environment variable's, or `name` in ../shared beside the repository; empty where
/// there is none.
inline Path shared_folder(const char* variable, const char* name) {
  const char* given = std::getenv(variable);
  const Path path = given != nullptr ? Path(given) : Path(FLUTE_SOURCE_DIR) / ".." / "shared" / name;
  return std::filesystem::is_directory(path) ? path : Path();
}

inline std::string read_text(const Path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

inline nlohmann::json reference(const Path& model) {
  return nlohmann::json::parse(read_text(model / "reference.json"));
}

/// After each sample's prompt, the largest 8 logits are those of the reference within 2e-3, in its order where that is
/// not a matter of such a difference; the greedy continuation is the same token by token.
inline void expect_samples(const Model& model, const nlohmann::json& expected) {
  for (const auto& sample : expected.at("samples")) {
    const auto ids = sample.at("input_ids").get<std::vector<int32_t>>();
    KvCache cache = model.make_cache(static_cast<int64_t>(ids.size()));
    const std::vector<float> logits = model.forward(ids, cache, Model::Logits::kLast);
    ASSERT_EQ(logits.size(), static_cast<size_t>(model.config().vocab_size));
    std::vector<float> sorted = logits;
    std::sort(sorted.rbegin(), sorted.rend());
    size_t rank = 0;
    for (const auto& top : sample.at("last_logits_top8")) {
      EXPECT_NEAR(logits.at(top.at(0).get<size_t>()), top.at(1).get<float>(), 2e-3F) << sample.at("prompt");
      EXPECT_NEAR(sorted.at(rank++), top.at(1).get<float>(), 2e-3F) << sample.at("prompt");
    }
    const auto greedy = sample.at("greedy_ids").get<std::vector<int32_t>>();
    const int64_t new_tokens = static_cast<int64_t>(greedy.size() - ids.size());
    EXPECT_EQ(generate(model, ids, new_tokens, {}, model.config().eos_token_ids).ids, greedy) << sample.at("prompt");
  }
}

inline void expect_perplexity(const PerplexityResult& found, double perplexity, int64_t predictions) {
  EXPECT_EQ(found.predictions, predictions);
  EXPECT_NEAR(found.perplexity, perplexity, 2e-4 * perplexity);
}

}  // namespace flute::model
