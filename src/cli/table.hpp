#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace flute::cli {

/// A table for a terminal: aligned columns, a header, optionally a last row of totals set off by a line.
class Table {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    std::string title;
    Align align = Align::kRight;
  };
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  /// One cell for each column.
  void add_row(std::vector<std::string> cells);
  void set_totals(std::vector<std::string> cells);

  /// The table, each line ended. Cells of left-aligned columns are shortened until a line fits in `max_width`.
  std::string render(size_t max_width, bool colour) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
  std::vector<std::string> totals_;
};

/// render() for standard output, and print.
void print_table(const Table& table);

}  // namespace flute::cli
