#include "quant/strip.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/fail.hpp"
#include "quant/products.hpp"
#include "quant/scale_ratios.hpp"

namespace flute {
namespace {

using Lanes = std::array<float, kLanes>;

constexpr int64_t kSearchSpan = 256;      // of a group, in the scale search
constexpr int64_t kBlock = kProductUnit;  // inputs between two products that carry errors to all others

/// codes = those nearest to targets / scales, where a scale of 0 gives the code nearest 0.
void round_lanes(const LookupTable& table, const float* targets, const float* scales, uint8_t* codes) {
  Lanes t;
  for (int64_t lane = 0; lane < kLanes; ++lane) t[lane] = scales[lane] != 0 ? targets[lane] / scales[lane] : 0.0F;
  nearest_codes(table.nearest, t.data(), 1.0F, kLanes, codes);
}

/// y += factor * x over the lanes.
void add_lanes(float factor, const float* x, float* y) {
  for (int64_t lane = 0; lane < kLanes; ++lane) y[lane] += factor * x[lane];
}

}  // namespace

Strip::Strip(const StripContext& context, const void* weight, DType dtype, int64_t n, int64_t first_row)
    : context_(&context), first_row_(first_row) {
  const int64_t k = context.k;
  weights_.resize(static_cast<size_t>(k * kLanes));
  codes_.resize(static_cast<size_t>(k * kLanes));
  scales_.resize(static_cast<size_t>(context.groups * kLanes));
  std::vector<float> row(static_cast<size_t>(k));
  for (int64_t lane = 0; lane < std::min(kLanes, n - first_row); ++lane) {
    const auto offset = static_cast<size_t>((first_row + lane) * k) * dtype_size(dtype);
    convert_to_f32(static_cast<const std::byte*>(weight) + offset, dtype, row.data(), row.size());
    for (int64_t j = 0; j < k; ++j) {
      if (!std::isfinite(row[static_cast<size_t>(j)])) {
        fail(ErrorCode::kInvalidArgument, "row {}, column {}: expected a finite weight, found {}", first_row + lane, j,
             row[static_cast<size_t>(j)]);
      }
      weights_[index(j, lane)] = row[static_cast<size_t>(j)];
    }
  }
}

float Strip::round_scale(float value) const { return round_to(context_->scale_dtype, value); }

void Strip::set_absmax_scales(float ratio, float max_magnitude) {
  for (int64_t g = 0; g < context_->groups; ++g) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      float absmax = 0;
      for (int64_t j = g * context_->group; j < context_->group_end(g); ++j) {
        absmax = std::max(absmax, std::abs(weights_[index(j, lane)]));
      }
      const float scale = round_scale(absmax * ratio / max_magnitude);
      if (!std::isfinite(scale)) {
        fail(ErrorCode::kInvalidArgument, "row {}, group {}: the scale {} / {} overflows {}", first_row_ + lane, g,
             absmax * ratio, max_magnitude, dtype_name(context_->scale_dtype));
      }
      scales_[index(g, lane)] = scale;
    }
  }
}

void Strip::round_plainly(const LookupTable& table, float max_magnitude) {
  set_absmax_scales(1.0F, max_magnitude);
  for (int64_t j = 0; j < context_->k; ++j) {
    round_lanes(table, weights_.data() + j * kLanes, scales_.data() + j / context_->group * kLanes,
                codes_.data() + j * kLanes);
  }
}

void Strip::search_scales(const LookupTable& table, float max_magnitude) {
  const int64_t k = context_->k;
  set_absmax_scales(1.0F, max_magnitude);
  const std::vector<float> absmax = scales_;
  std::vector<uint8_t> codes(static_cast<size_t>(context_->group * kLanes));
  std::vector<float> d(codes.size()), hd(codes.size());
  for (int64_t g = 0; g < context_->groups; ++g) {
    const int64_t begin = g * context_->group, size = context_->group_end(g) - begin;
    std::array<double, kLanes> least;
    least.fill(std::numeric_limits<double>::infinity());
    for (int ratio = 0; ratio < kScaleRatios; ++ratio) {
      const float factor = scale_ratio(ratio);
      Lanes scales;
      for (int64_t lane = 0; lane < kLanes; ++lane) scales[lane] = round_scale(absmax[index(g, lane)] * factor);
      for (int64_t j = 0; j < size; ++j) {
        uint8_t* const of_input = codes.data() + j * kLanes;
        round_lanes(table, weights_.data() + (begin + j) * kLanes, scales.data(), of_input);
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          d[index(j, lane)] = weights_[index(begin + j, lane)] - table.values[of_input[lane]] * scales[lane];
        }
      }
      std::fill_n(hd.begin(), size * kLanes, 0.0F);
      for (int64_t part = 0; part < size; part += kSearchSpan) {
        const int64_t count = std::min(kSearchSpan, size - part);
        add_product(context_->moments + (begin + part) * (k + 1), k, d.data() + part * kLanes, kLanes, count, count,
                    kLanes, hd.data() + part * kLanes, kLanes);
      }
      std::array<double, kLanes> errors{};
      for (int64_t j = 0; j < size; ++j) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          errors[lane] += double{d[index(j, lane)]} * double{hd[index(j, lane)]};
        }
      }
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        if (!(errors[lane] < least[lane]) || !std::isfinite(scales[lane])) continue;
        least[lane] = errors[lane];
        scales_[index(g, lane)] = scales[lane];
        for (int64_t j = 0; j < size; ++j) codes_[index(begin + j, lane)] = codes[index(j, lane)];
      }
    }
  }
}

void Strip::add_lloyd_sums(const LookupTable& table, std::span<double> weights, std::span<double> values) {
  for (int64_t j = 0; j < context_->k; ++j) {
    const float* const scales = scales_.data() + j / context_->group * kLanes;
    uint8_t* const codes = codes_.data() + j * kLanes;
    round_lanes(table, weights_.data() + j * kLanes, scales, codes);
    const double square = double{context_->square(j)};
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double factor = square * double{scales[lane]};
      weights[codes[lane]] += factor * double{scales[lane]};
      values[codes[lane]] += factor * double{weights_[index(j, lane)]};
    }
  }
}

void Strip::round_with_feedback(const LookupTable& table) {
  const int64_t k = context_->k;
  const std::vector<int64_t>& order = context_->factor->order;
  const float* const coefficients = context_->factor->coefficients.data();
  std::vector<float> targets(weights_.size());
  for (int64_t i = 0; i < k; ++i) {
    std::copy_n(weights_.data() + order[static_cast<size_t>(i)] * kLanes, kLanes, targets.data() + i * kLanes);
  }
  std::vector<float> e(static_cast<size_t>(kBlock * kLanes));
  for (int64_t begin = k - kBlock; begin >= 0; begin -= kBlock) {
    for (int64_t i = begin + kBlock - 1; i >= begin; --i) {
      const int64_t input = order[static_cast<size_t>(i)];
      const float* const scales = scales_.data() + input / context_->group * kLanes;
      uint8_t* const codes = codes_.data() + input * kLanes;
      round_lanes(table, targets.data() + i * kLanes, scales, codes);
      float* const of_input = e.data() + (i - begin) * kLanes;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        of_input[lane] = weights_[index(input, lane)] - table.values[codes[lane]] * scales[lane];
      }
      for (int64_t other = begin; other < i; ++other) {
        add_lanes(coefficients[i * k + other], of_input, targets.data() + other * kLanes);
      }
    }
    add_product(coefficients + begin * k, k, e.data(), kLanes, kBlock, begin, kLanes, targets.data(), kLanes);
  }
}

std::vector<float> Strip::multiply(const std::vector<float>& values) const {
  std::vector<float> result(values.size());
  add_product(context_->moments, context_->k, values.data(), kLanes, context_->k, context_->k, kLanes, result.data(),
              kLanes);
  return result;
}

std::vector<float> Strip::errors(const LookupTable& table) const {
  std::vector<float> result(weights_.size());
  for (int64_t j = 0; j < context_->k; ++j) {
    const float* const scales = scales_.data() + j / context_->group * kLanes;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      result[index(j, lane)] = weights_[index(j, lane)] - table.values[codes_[index(j, lane)]] * scales[lane];
    }
  }
  return result;
}

/// The best scale of a group given its codes; the old one where that is none that can be stored.
float Strip::improve_scale(int64_t g, int64_t lane, double numerator, double denominator) const {
  const float old = scales_[index(g, lane)];
  if (!(denominator > 0)) return old;
  const float scale = round_scale(static_cast<float>(double{old} + numerator / denominator));
  return std::isfinite(scale) && scale > 0 ? scale : old;
}

void Strip::improve(const LookupTable& table, int sweeps) {
  const int64_t k = context_->k;
  std::vector<float> gradient = multiply(errors(table));  // H (w - q), kept up to date
  const auto carry = [&](const float* change, int64_t begin, int64_t count, int64_t to, int64_t to_end) {
    if (to >= to_end) return;
    add_product(context_->moments + begin * k + to, k, change, kLanes, count, to_end - to, kLanes,
                gradient.data() + to * kLanes, kLanes, true);
  };
  std::vector<float> change(static_cast<size_t>(context_->group * kLanes)), v(change.size()), hv(change.size());
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    for (int64_t g = 0; g < context_->groups; ++g) {
      const int64_t begin = g * context_->group, end = context_->group_end(g);
      float* const scales = scales_.data() + g * kLanes;
      for (int64_t block = begin; block < end; block += kBlock) {
        for (int64_t j = block; j < block + kBlock; ++j) {
          Lanes target, old;
          uint8_t* const codes = codes_.data() + j * kLanes;
          for (int64_t lane = 0; lane < kLanes; ++lane) {
            old[lane] = table.values[codes[lane]] * scales[lane];
            target[lane] = old[lane] + gradient[index(j, lane)] / context_->square(j);
          }
          round_lanes(table, target.data(), scales, codes);
          float* const delta = change.data() + (j - begin) * kLanes;
          for (int64_t lane = 0; lane < kLanes; ++lane)
            delta[lane] = table.values[codes[lane]] * scales[lane] - old[lane];
          const float* const row = context_->moments + j * k;
          for (int64_t i = block; i < block + kBlock; ++i) add_lanes(-row[i], delta, gradient.data() + i * kLanes);
        }
        const float* const delta = change.data() + (block - begin) * kLanes;
        carry(delta, block, kBlock, begin, block);
        carry(delta, block, kBlock, block + kBlock, end);
      }
      // The scale, given the codes: q = v s, v the codes' values.
      for (int64_t j = begin; j < end; ++j) {
        for (int64_t lane = 0; lane < kLanes; ++lane) v[index(j - begin, lane)] = table.values[codes_[index(j, lane)]];
      }
      const int64_t size = end - begin;
      std::fill_n(hv.begin(), size * kLanes, 0.0F);
      add_product(context_->moments + begin * (k + 1), k, v.data(), kLanes, size, size, kLanes, hv.data(), kLanes);
      std::array<double, kLanes> numerator{}, denominator{};
      for (int64_t j = 0; j < size; ++j) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          numerator[lane] += double{v[index(j, lane)]} * double{gradient[index(begin + j, lane)]};
          denominator[lane] += double{v[index(j, lane)]} * double{hv[index(j, lane)]};
        }
      }
      Lanes step;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float scale = improve_scale(g, lane, numerator[lane], denominator[lane]);
        step[lane] = scale - scales[lane];
        scales[lane] = scale;
      }
      for (int64_t j = 0; j < size; ++j) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          gradient[index(begin + j, lane)] -= step[lane] * hv[index(j, lane)];
          change[index(j, lane)] += step[lane] * v[index(j, lane)];
        }
      }
      carry(change.data(), begin, size, 0, begin);
      carry(change.data(), begin, size, end, k);
    }
  }
}

void Strip::add_table_gradient(const LookupTable& table, std::span<double> gradient, std::span<double> diagonal) const {
  const std::vector<float> he = multiply(errors(table));
  for (int64_t j = 0; j < context_->k; ++j) {
    const float* const scales = scales_.data() + j / context_->group * kLanes;
    const double square = double{context_->square(j)};
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const uint8_t code = codes_[index(j, lane)];
      gradient[code] += double{scales[lane]} * double{he[index(j, lane)]};
      diagonal[code] += square * double{scales[lane]} * double{scales[lane]};
    }
  }
}

void Strip::add_table_product(std::span<const double> direction, std::span<double> product) const {
  std::vector<float> values(weights_.size());
  for (int64_t j = 0; j < context_->k; ++j) {
    const float* const scales = scales_.data() + j / context_->group * kLanes;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      values[index(j, lane)] = static_cast<float>(direction[codes_[index(j, lane)]]) * scales[lane];
    }
  }
  const std::vector<float> hv = multiply(values);
  for (int64_t j = 0; j < context_->k; ++j) {
    const float* const scales = scales_.data() + j / context_->group * kLanes;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      product[codes_[index(j, lane)]] += double{scales[lane]} * double{hv[index(j, lane)]};
    }
  }
}

double Strip::error(const LookupTable* table) const {
  const std::vector<float> d = table == nullptr ? weights_ : errors(*table);
  const std::vector<float> hd = multiply(d);
  double sum = 0;
  for (size_t i = 0; i < d.size(); ++i) sum += double{d[i]} * double{hd[i]};
  return sum;
}

}  // namespace flute
