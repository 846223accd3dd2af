#pragma once
#include <cstdint>
#include <vector>

namespace flute {

class ThreadPool;

/// How the error of one weight is made good by those that are rounded after it.
struct FeedbackFactor {
  /// The order of rounding, backwards: order[k - 1] is the input that is rounded first, that of the largest mean
  /// square.
  std::vector<int64_t> order;
  /// [k, k] in that order. Below the diagonal: an error e in weight j moves the target of weight i < j by
  /// e * coefficients[j, i]. What stands elsewhere has no meaning.
  std::vector<float> coefficients;
};

/// Adds damp * (the diagonal's mean) to the diagonal of `moments` [k, k], or 1 where that mean is 0 (inputs that are
/// never anything but zero). Several times that where rounding leaves the matrix indefinite.
/// Factor: H = R^T R in the order (Cholesky), then (R e)_i = R_ii (e_i + sum over j > i of e_j R_ij / R_ii); rounding
/// from the last to the first makes each term as small as it can be (Frantar et al., "GPTQ", 2023; Chee et al., "QuIP",
/// 2023).
FeedbackFactor make_feedback_factor(std::vector<float>& moments, int64_t k, double damp, ThreadPool* threads);

}  // namespace flute
