#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "model/reference.hpp"

namespace flute::model {
namespace {

// What the reference implementation computes of the same checkpoints (reference.json; its note defines perplexity).

class Reference : public testing::TestWithParam<const char*> {};

TEST_P(Reference, LogitsAndGreedyTokensAreTheReferences) {
  ThreadPool threads(2);
  const Model model = Model::load(examples() / GetParam(), &threads);
  expect_samples(model, reference(examples() / GetParam()));
}

TEST_P(Reference, PerplexityIsTheReferences) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "takes minutes with sanitizers; the calibrated quantizers' tests run the same code on less text";
#endif
  const Path folder = examples() / GetParam();
  const nlohmann::json expected = reference(folder);
  ThreadPool threads(2);
  const Model model = Model::load(folder, &threads);
  const Tokenizer tokenizer = Tokenizer::load(folder / "tokenizer.json");
  const std::string text = read_text(examples() / "docs-test-small.txt");
  expect_perplexity(perplexity(model, tokenizer, text, 512), expected.at("test_ppl"), expected.at("test_predictions"));
}

INSTANTIATE_TEST_SUITE_P(Models, Reference, testing::Values("docs-llama-small", "docs-gemma2-small"),
                         [](const auto& values) { return std::string(values.param).substr(5, 5); });

class LargeReference : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const Path models = shared_folder("FLUTE_TEST_MODELS", "models");
    data_ = shared_folder("FLUTE_TEST_DATA", "data");
    if (models.empty() || data_.empty()) {
      GTEST_SKIP() << "needs the larger checkpoints and texts: set FLUTE_TEST_MODELS and FLUTE_TEST_DATA";
    }
    folder_ = models / GetParam();
  }
  Path folder_, data_;
};

TEST_P(LargeReference, LogitsTokensAndPerplexityAreTheReferences) {
  const nlohmann::json expected = reference(folder_);
  ThreadPool threads;
  const Model model = Model::load(folder_, &threads);
  expect_samples(model, expected);
  const Tokenizer tokenizer = Tokenizer::load(folder_ / "tokenizer.json");
  expect_perplexity(perplexity(model, tokenizer, read_text(data_ / "docs-test.txt"), 512), expected.at("test_ppl"),
                    expected.at("test_predictions"));
}

INSTANTIATE_TEST_SUITE_P(Models, LargeReference, testing::Values("docs-llama", "docs-gemma2"),
                         [](const auto& values) { return std::string(values.param).substr(5); });

}  // namespace
}  // namespace flute::model
