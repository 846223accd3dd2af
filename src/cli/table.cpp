#include "cli/table.hpp"

#include <algorithm>
#include <numeric>
#include <string_view>
#include <utility>

#include "base/fail.hpp"
#include "cli/terminal.hpp"
#include "cli/text.hpp"

namespace flute::cli {
namespace {

constexpr size_t kGap = 2;
constexpr size_t kNarrowest = 12;  // a name shortened further says nothing

std::vector<size_t> natural_widths(size_t columns, const std::vector<const std::vector<std::string>*>& rows) {
  std::vector<size_t> widths(columns, 0);
  for (const auto* row : rows) {
    for (size_t i = 0; i < columns; ++i) widths[i] = std::max(widths[i], display_width((*row)[i]));
  }
  return widths;
}

size_t line_width(const std::vector<size_t>& widths) {
  return std::accumulate(widths.begin(), widths.end(), size_t{0}) + kGap * (widths.size() - 1);
}

}  // namespace

void Table::add_row(std::vector<std::string> cells) {
  if (cells.size() != columns_.size()) {
    fail(ErrorCode::kInternal, "table row: expected {} cells, found {}", columns_.size(), cells.size());
  }
  rows_.push_back(std::move(cells));
}

void Table::set_totals(std::vector<std::string> cells) {
  add_row(std::move(cells));
  totals_ = std::move(rows_.back());
  rows_.pop_back();
}

std::string Table::render(size_t max_width, bool colour) const {
  std::vector<std::string> titles;
  for (const Column& column : columns_) titles.push_back(column.title);
  std::vector<const std::vector<std::string>*> all = {&titles};
  for (const auto& row : rows_) all.push_back(&row);
  if (!totals_.empty()) all.push_back(&totals_);

  std::vector<size_t> widths = natural_widths(columns_.size(), all);
  for (size_t i = 0; i < columns_.size(); ++i) {
    const size_t line = line_width(widths);
    if (line <= max_width || columns_[i].align != Align::kLeft || widths[i] <= kNarrowest) continue;
    widths[i] -= std::min(line - max_width, widths[i] - kNarrowest);
  }

  std::string out;
  const auto append_line = [&](const std::vector<std::string>& cells, std::string_view style) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      const std::string cell = columns_[i].align == Align::kLeft ? shorten(cells[i], widths[i]) : cells[i];
      const std::string padding(widths[i] - std::min(widths[i], display_width(cell)), ' ');
      if (i > 0) line.append(kGap, ' ');
      line += columns_[i].align == Align::kLeft ? cell + padding : padding + cell;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += colour && !style.empty() ? fmt::format("{}{}\x1b[0m\n", style, line) : line + '\n';
  };
  const auto append_rule = [&] {
    std::string rule;
    for (size_t i = 0; i < line_width(widths); ++i) rule += "─";
    out += colour ? fmt::format("\x1b[2m{}\x1b[0m\n", rule) : rule + '\n';
  };

  append_line(titles, "\x1b[1m");
  append_rule();
  for (const auto& row : rows_) append_line(row, "");
  if (!totals_.empty()) {
    append_rule();
    append_line(totals_, "\x1b[1m");
  }
  return out;
}

void print_table(const Table& table) {
  // Into a file or a pipe nothing is shortened: a script must find whole names.
  const size_t width = is_terminal(stdout) ? static_cast<size_t>(terminal_width(stdout)) : SIZE_MAX;
  write_out(table.render(width, wants_colour(stdout)));
}

}  // namespace flute::cli
