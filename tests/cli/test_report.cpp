#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>
#include <regex>
#include <string>
#include <vector>

#include "cli/figures.hpp"
#include "cli/report.hpp"
#include "cli/sample_comparison.hpp"
#include "cli/svg.hpp"

namespace flute::cli {
namespace {

TEST(EscapeHtml, NothingOfATextIsMarkup) {
  EXPECT_EQ(escape_html("<b>\"x\" & 'y'</b>"), "&lt;b&gt;&quot;x&quot; &amp; &#39;y&#39;&lt;/b&gt;");
  EXPECT_EQ(escape_html(std::string("a\0b\x1b", 4)),
            "a\xef\xbf\xbd"
            "b\xef\xbf\xbd");
  EXPECT_EQ(escape_html("zwei\nZeilen, größer"), "zwei\nZeilen, größer");
}

TEST(Coordinate, ShortAndNeverAnExponent) {
  EXPECT_EQ(coordinate(12.0), "12");
  EXPECT_EQ(coordinate(0.126), "0.13");
  EXPECT_EQ(coordinate(1e-9), "0");
  EXPECT_EQ(coordinate(-0.001), "0");
  EXPECT_EQ(coordinate(1234567.5), "1234567.5");
  EXPECT_EQ(coordinate(NAN), "0");
  EXPECT_EQ(coordinate(HUGE_VAL), "0");
}

TEST(Scale, EndsMeetEnds) {
  const Scale linear{2, 6, 100, 0, false};
  EXPECT_DOUBLE_EQ(linear(2), 100);
  EXPECT_DOUBLE_EQ(linear(6), 0);
  EXPECT_DOUBLE_EQ(linear(3), 75);
  const Scale logarithmic{1, 100, 0, 10, true};
  EXPECT_DOUBLE_EQ(logarithmic(10), 5);
}

TEST(Ticks, InsideAndAFewForAnyRange) {
  const unsigned seed = std::random_device{}();
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> exponent(-6, 6), ratio(1e-3, 3);
  for (int i = 0; i < 2000; ++i) {
    const double low = std::pow(10.0, exponent(random));
    const double high = low * (1 + ratio(random) * ratio(random));
    for (const auto& ticks : {linear_ticks(low, high, 7), log_ticks(low, high, 7)}) {
      EXPECT_GE(ticks.size(), 2u) << "seed " << seed << ": " << low << " to " << high;
      EXPECT_LE(ticks.size(), 11u) << "seed " << seed << ": " << low << " to " << high;
      EXPECT_TRUE(std::is_sorted(ticks.begin(), ticks.end()));
      EXPECT_GE(ticks.front(), low * (1 - 1e-6));
      EXPECT_LE(ticks.back(), high * (1 + 1e-6));
    }
  }
  EXPECT_EQ(linear_ticks(3, 3, 5).size(), 1u);
}

TEST(LayerPlace, NamesOfCommonCheckpoints) {
  const auto place = [](const char* name) {
    const LayerPlace found = layer_place(name);
    return std::make_pair(found.layer, found.kind);
  };
  EXPECT_EQ(place("model.layers.3.mlp.down_proj"), std::make_pair(int64_t{3}, std::string("down")));
  EXPECT_EQ(place("model.layers.12.mlp.experts.7.up_proj"), std::make_pair(int64_t{12}, std::string("up")));
  EXPECT_EQ(place("lm_head"), std::make_pair(int64_t{-1}, std::string("lm_head")));
  EXPECT_EQ(place("h.0.attn.c_attn"), std::make_pair(int64_t{0}, std::string("c_attn")));
  EXPECT_EQ(place("blocks.99999999999999999999.x"),
            std::make_pair(int64_t{-1}, std::string("blocks.99999999999999999999.x")));
  EXPECT_EQ(place(""), std::make_pair(int64_t{-1}, std::string("")));
}

/// Every element that is opened is closed, in order: what a browser would otherwise guess at.
void expect_well_formed(const std::string& html) {
  std::vector<std::string> open;
  const std::regex tag("<(/?)([a-z0-9]+)([^<>]*?)(/?)>");
  for (std::sregex_iterator match(html.begin(), html.end(), tag), end; match != end; ++match) {
    const std::string name = (*match)[2];
    if (name == "meta" || (*match)[4].length() > 0) continue;
    if ((*match)[1].length() == 0) {
      open.push_back(name);
    } else {
      ASSERT_FALSE(open.empty()) << "stray </" << name << ">";
      ASSERT_EQ(open.back(), name) << "closed out of order at byte " << match->position();
      open.pop_back();
    }
  }
  EXPECT_TRUE(open.empty()) << "never closed: " << open.back();
}

TEST(ChangeText, PercentUntilTenfold) {
  EXPECT_EQ(change_text(std::nullopt), "");
  EXPECT_EQ(change_text(0.048), "+4.80 %");
  EXPECT_EQ(change_text(-0.001), "-0.10 %");
  EXPECT_EQ(change_text(688.6), "690x");
}

TEST(Report, OnePageThatNeedsNothingElse) {
  const std::string html = render_report(sample_comparison(8, 32));
  std::string elements = html;
  elements.erase(elements.find("<style>"), elements.find("</style>") + 8 - elements.find("<style>"));
  expect_well_formed(elements);
  for (const char* foreign : {"http://", "https://", "src=", "<script", "@import", "url("}) {
    EXPECT_EQ(html.find(foreign), std::string::npos) << foreign;
  }
  EXPECT_EQ(html.find("nan"), std::string::npos);
  EXPECT_NE(html.find("prefers-color-scheme: dark"), std::string::npos);
}

TEST(Report, NamesAndSamplesAreEscaped) {
  Comparison comparison = sample_comparison(2, 2, "<script>alert('x')</script>&");
  const std::string html = render_report(comparison);
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_NE(html.find("&lt;script&gt;"), std::string::npos);
  EXPECT_EQ(html.find("<b>of</b>"), std::string::npos);
}

TEST(Report, EachModelHasItsStripHistogramAndMark) {
  const Comparison comparison = sample_comparison(5, 4);
  const auto count = [](const std::string& text, const std::string& what) {
    size_t found = 0;
    for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++found;
    return found;
  };
  EXPECT_EQ(count(error_figure(comparison), "<figure"), 5u);
  EXPECT_EQ(count(error_figure(comparison), "<title>layer"), 5u * 4 * 7);
  EXPECT_EQ(count(histogram_figure(comparison), "<figure"), 5u);
  EXPECT_EQ(count(perplexity_figure(comparison), "class=\"badge\""), 5u);
  EXPECT_EQ(count(perplexity_figure(comparison), "class=\"level\""), 1u);
}

TEST(Report, SurvivesWhatItCannotDraw) {
  Comparison only_original = sample_comparison(0, 1);
  EXPECT_EQ(perplexity_figure(only_original), "");
  EXPECT_EQ(error_figure(only_original), "");
  expect_well_formed(perplexity_figure(only_original));
  Comparison odd = sample_comparison(3, 2);
  odd.models[1].perplexity = HUGE_VAL;
  odd.models[2].perplexity = NAN;
  for (auto& layer : odd.models[3].checkpoint.layers) layer.relative_error = 0.0;
  const std::string figure = perplexity_figure(odd);
  EXPECT_EQ(figure.find("nan"), std::string::npos);
  EXPECT_EQ(figure.find("inf"), std::string::npos);
  EXPECT_FALSE(error_figure(odd).empty());
  EXPECT_FALSE(render_report(odd).empty());
  EXPECT_FALSE(render_report(Comparison{}).empty());
  Comparison without_original = sample_comparison(2, 2);
  without_original.original.reset();
  EXPECT_EQ(perplexity_figure(without_original).find("class=\"level\""), std::string::npos);
}

}  // namespace
}  // namespace flute::cli
