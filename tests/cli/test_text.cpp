#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "cli/table.hpp"
#include "cli/text.hpp"
#include "flute/error.hpp"

namespace flute::cli {
namespace {

TEST(HumanBytes, ThreeDigitsAndNoThousandOfAUnit) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(999), "999 B");
  EXPECT_EQ(human_bytes(1000), "1.00 kB");
  EXPECT_EQ(human_bytes(15'340'000), "15.3 MB");
  EXPECT_EQ(human_bytes(999'499), "999 kB");
  EXPECT_EQ(human_bytes(999'600), "1.00 MB");
  EXPECT_EQ(human_bytes(99'960), "100 kB");
  EXPECT_EQ(human_bytes(9'996), "10.0 kB");
  EXPECT_EQ(human_bytes(16.1e9), "16.1 GB");
}

TEST(HumanSeconds, FromMillisecondsToHours) {
  EXPECT_EQ(human_seconds(0.417), "0.42 s");
  EXPECT_EQ(human_seconds(12.34), "12.3 s");
  EXPECT_EQ(human_seconds(59.96), "1 min 00 s");
  EXPECT_EQ(human_seconds(185), "3 min 05 s");
  EXPECT_EQ(human_seconds(2 * 3600 + 3 * 60 + 59), "2 h 03 min");
  EXPECT_EQ(human_seconds(HUGE_VAL), "?");
  EXPECT_EQ(human_seconds(NAN), "?");
}

TEST(HumanCount, Thousands) {
  EXPECT_EQ(human_count(0), "0");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(53144), "53,144");
  EXPECT_EQ(human_count(-1234567), "-1,234,567");
  EXPECT_EQ(human_count(-123), "-123");
}

TEST(HumanNumber, FourDigits) {
  EXPECT_EQ(human_number(6.50819), "6.508");
  EXPECT_EQ(human_number(16.25), "16.25");
  EXPECT_EQ(human_number(1234.5), "1234");
  EXPECT_EQ(human_number(0.0912345), "0.09123");
  EXPECT_EQ(human_number(0), "0");
  EXPECT_EQ(human_number(HUGE_VAL), "inf");
  EXPECT_EQ(human_number(NAN), "nan");
}

TEST(Shorten, KeepsBothEndsAndWholeCharacters) {
  EXPECT_EQ(shorten("short", 5), "short");
  EXPECT_EQ(shorten("model.layers.17.mlp.down_proj", 13), "model.…n_proj");
  for (size_t width = 0; width < 12; ++width) {
    const std::string cut = shorten("äöüßéèçñ÷×", width);
    EXPECT_LE(display_width(cut), width);
    EXPECT_EQ(cut.empty() ? 0 : static_cast<unsigned char>(cut.front()) & 0xc0u, cut.empty() ? 0u : 0xc0u)
        << "starts inside a character at width " << width;
  }
}

TEST(Wrap, BreaksAtSpacesAndKeepsEveryWord) {
  EXPECT_EQ(wrap("one two three", 7), "one two\nthree");
  EXPECT_EQ(wrap("unbreakable word", 4), "unbreakable\nword");
  EXPECT_EQ(wrap("größe äöü", 9), "größe äöü");
  EXPECT_EQ(wrap("", 10), "");
}

TEST(NaturalLess, CountsLayersAsPeopleDo) {
  std::vector<std::string> names = {"layers.10.a", "layers.2.b", "layers.2.a", "lm_head", "layers.02.a", "layers", ""};
  std::stable_sort(names.begin(), names.end(), natural_less);
  EXPECT_EQ(names, (std::vector<std::string>{"", "layers", "layers.2.a", "layers.02.a", "layers.2.b", "layers.10.a",
                                             "lm_head"}));
  EXPECT_FALSE(natural_less("a.1", "a.1"));
}

TEST(BaseName, TrailingSlashAndDot) {
  EXPECT_EQ(base_name("models/llama"), "llama");
  EXPECT_EQ(base_name("models/llama/"), "llama");
  EXPECT_EQ(base_name("models/llama/."), "llama");
  EXPECT_EQ(base_name("."), std::filesystem::current_path().filename().string());
}

TEST(ReadText, NamesTheFileItCannotRead) {
  try {
    read_text("/nonexistent/text.txt");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_NE(std::string(error.what()).find("/nonexistent/text.txt"), std::string::npos);
  }
  EXPECT_THROW(read_text("/"), Error) << "a folder is not a text";
}

TEST(ReadText, KeepsEveryByte) {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "flute_read_text.txt";
  std::string text(200'000, 'x');
  text[70'000] = '\0';
  text[70'001] = '\r';
  std::ofstream(path, std::ios::binary) << text;
  EXPECT_EQ(read_text(path), text);
  std::filesystem::remove(path);
}

TEST(Table, AlignsUnicodeAndNumbers) {
  Table table({{"name", Table::Align::kLeft}, {"bytes"}});
  table.add_row({"für", "1"});
  table.add_row({"abcde", "1000"});
  table.set_totals({"all", "1001"});
  EXPECT_EQ(table.render(80, false),
            "name   bytes\n"
            "────────────\n"
            "für        1\n"
            "abcde   1000\n"
            "────────────\n"
            "all     1001\n");
}

TEST(Table, ShortensNamesToFitButNeverNumbers) {
  Table table({{"name", Table::Align::kLeft}, {"bytes"}});
  table.add_row({std::string(60, 'n'), "123456789"});
  const std::string text = table.render(40, false);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    EXPECT_LE(display_width(text.substr(begin, end - begin)), 40u);
    begin = end + 1;
  }
  EXPECT_NE(text.find("123456789"), std::string::npos);
  EXPECT_NE(table.render(SIZE_MAX, false).find(std::string(60, 'n')), std::string::npos);
}

TEST(Table, ColoursOnlyWhenAsked) {
  Table table({{"name", Table::Align::kLeft}});
  table.add_row({"a"});
  EXPECT_EQ(table.render(80, false).find('\x1b'), std::string::npos);
  EXPECT_NE(table.render(80, true).find('\x1b'), std::string::npos);
}

TEST(Table, RefusesARowOfAnotherLength) {
  Table table({{"name"}, {"bytes"}});
  EXPECT_THROW(table.add_row({"a"}), Error);
}

}  // namespace
}  // namespace flute::cli
