#include "cuda/plan.hpp"

#include <algorithm>

namespace flute::cuda {

namespace {

// Row groups of each segment.
struct Segments {
  int count = 1, groups[kMaxSegments] = {};

  explicit Segments(const Shape& shape) : count(std::max(shape.segments, 1)) {
    groups[0] = ceil_div(shape.n, kGroupRows);
    for (int s = 0; s < shape.segments; ++s) {
      groups[s] = ceil_div(shape.segment_row[s + 1], kGroupRows) - shape.segment_row[s] / kGroupRows;
    }
  }
  // Blocks of up to `rows` row groups: how many.
  int blocks(int rows) const {
    int sum = 0;
    for (int s = 0; s < count; ++s) sum += ceil_div(groups[s], rows);
    return sum;
  }
};

}  // namespace

RowDeal deal_rows(const Shape& shape, int multiprocessors, int most) {
  const Segments segments(shape);
  RowDeal deal;
  const int room = ceil_div(std::max(segments.blocks(most), 1), multiprocessors) * multiprocessors;
  int rows = 1;
  while (segments.blocks(rows) > room) ++rows;
  deal.longest = rows;
  deal.segments = segments.count;
  int first = 0, spare = room - segments.blocks(rows);  // multiprocessors that would have nothing to do
  for (int s = 0; s < segments.count; ++s) {
    const int groups = segments.groups[s], needed = ceil_div(groups, rows);
    const int more = std::min(spare, groups - needed);
    RowShare& share = deal.share[s];
    share.first = first;
    share.blocks = needed + more;
    share.each = groups / std::max(share.blocks, 1);
    share.longer = groups - share.each * share.blocks;
    first += groups, spare -= more, deal.blocks += share.blocks;
  }
  return deal;
}

}  // namespace flute::cuda
