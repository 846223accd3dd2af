#include <gtest/gtest.h>

#include <string>

#include "cli/progress.hpp"
#include "cli/text.hpp"

namespace flute::cli {
namespace {

TEST(Progress, RateAndTimeLeft) {
  const ProgressState state{1'000'000'000, 4'000'000'000, 2.0};
  EXPECT_EQ(progress_figures(state, Unit::kBytes), "1.00 GB of 4.00 GB  500 MB/s  6.00 s left");
  EXPECT_EQ(progress_log_line("quantize", state, Unit::kBytes),
            "quantize: 25 %, 1.00 GB of 4.00 GB  500 MB/s  6.00 s left");
  EXPECT_EQ(progress_figures({512, 1024, 0.5}, Unit::kTokens), "512 of 1,024 tokens  1,024 tokens/s  0.50 s left");
}

// Shares of the work are for the percentage and the time left, not to be read themselves.
TEST(Progress, SharesAreNotShown) {
  EXPECT_EQ(progress_figures({250'000, 1'000'000, 2.0}, Unit::kShares), "6.00 s left");
  EXPECT_EQ(progress_log_line("quantize", {250'000, 1'000'000, 2.0}, Unit::kShares), "quantize: 25 %, 6.00 s left");
  EXPECT_EQ(progress_log_line("quantize", {0, 1'000'000, 2.0}, Unit::kShares), "quantize: 0 %");
}

// A run that goes on where another ended: what that one did took this one no time.
TEST(Progress, TimeLeftIsOfThisRunsOwnWork) {
  EXPECT_EQ(progress_figures({750'000, 1'000'000, 2.0, 500'000}, Unit::kShares), "2.00 s left");
  EXPECT_EQ(progress_figures({500'000, 1'000'000, 2.0, 500'000}, Unit::kShares), "");
}

TEST(Progress, NothingDoneYetPromisesNothing) {
  EXPECT_EQ(progress_figures({0, 10'000, 3.0}, Unit::kBytes), "0 B of 10.0 kB");
  EXPECT_EQ(progress_figures({0, 0, 0.0}, Unit::kBytes), "0 B of 0 B");
}

TEST(Progress, MoreDoneThanPlannedIsNotMoreThanAll) {
  const std::string line = progress_bar_line("x", {20, 10, 1.0}, Unit::kBytes, "", 200);
  EXPECT_NE(line.find("100 %"), std::string::npos) << line;
  EXPECT_NE(line.find("0.00 s left"), std::string::npos) << line;
}

TEST(Progress, BarFitsEveryTerminal) {
  const ProgressState state{123'456'789, 987'654'321, 12.0};
  for (int width = 1; width < 160; ++width) {
    const std::string line =
        progress_bar_line("quantize", state, Unit::kBytes, "model.layers.17.mlp.down_proj.weight", width);
    EXPECT_LE(display_width(line), static_cast<size_t>(width)) << line;
  }
  EXPECT_NE(progress_bar_line("quantize", state, Unit::kBytes, "down_proj", 150).find("down_proj"), std::string::npos);
}

}  // namespace
}  // namespace flute::cli
