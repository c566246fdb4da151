// The terms of the policy loss for one row; the maths over the vocabulary is in rows.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/cpu_capability.h"
#include "common/half_types.h"
#include "common/huge_pages.h"
#include "common/parallel.h"
#include "policy_rows/op.h"
#include "policy_rows/rows.h"

namespace zoomzero {
namespace {

const RowMath& row_math() {
  static constexpr const RowMath* kTables[] = ZOOMZERO_TABLES(kRowMath);
  return *kTables[static_cast<int32_t>(cpu_capability())];
}

int64_t num_rows(const LogitRows& rows) { return rows.num_sequences * rows.num_tokens; }

const void* row_of(const LogitRows& rows, int64_t row) {
  const int64_t offset = row / rows.num_tokens * rows.stride_sequence + row % rows.num_tokens * rows.stride_token;
  return static_cast<const char*>(rows.logits) + offset * bytes_of(rows.type);
}

void* row_of(const GradientRows& grad, const LogitRows& rows, int64_t row) {
  const int64_t offset = row / rows.num_tokens * grad.stride_sequence + row % rows.num_tokens * grad.stride_token;
  return static_cast<char*>(grad.data) + offset * bytes_of(rows.type);
}

void clear_row(const GradientRows& grad, const LogitRows& rows, int64_t row) {
  // All bits zero is the number 0 in every ElementType.
  std::memset(row_of(grad, rows, row), 0, static_cast<size_t>(rows.vocab_size * bytes_of(rows.type)));
}

RowStatistics statistics_of(const LogitRows& rows, const RowMath& math, int64_t row) {
  return math.statistics[static_cast<int32_t>(rows.type)](row_of(rows, row), rows.vocab_size, rows.inv_temperature);
}

double logit_of(const void* row, ElementType type, int64_t index) {
  switch (type) {
    case ElementType::kFloat32:
      return static_cast<const float*>(row)[index];
    case ElementType::kBFloat16:
      return to_float(static_cast<const BFloat16Bits*>(row)[index]);
    case ElementType::kFloat16:
      return to_float(static_cast<const Float16Bits*>(row)[index]);
  }
  __builtin_unreachable();
}

double logp_of(const LogitRows& rows, const RowStatistics& statistics, int64_t row) {
  const double logit = logit_of(row_of(rows, row), rows.type, rows.token_ids[row]);
  return (logit - statistics.largest) * rows.inv_temperature - statistics.log_sum;
}

// Of float32, as the results are.
constexpr double kLargest = std::numeric_limits<float>::max();

struct PolicyTerms {
  double loss;
  double derivative;  // in logp
  double kl;
  float clipped;  // -1: from below, 1: from above, 0: not
};

// What a map takes of one token; low and high are its bounds for the sign of the advantage.
struct Token {
  double logp;
  double log_ratio;
  double ratio;
  double advantage;
  double low;
  double high;
};

// Loss, derivative and what is compared with the bounds.
struct Mapped {
  double loss;
  double derivative;
  double measure;
};

double bounded(double value, double low, double high) { return value < low ? low : value > high ? high : value; }

// These as in zoomzero_kernels/policy/terms.py; a NaN ratio shows in loss and derivative.
double divergence(const Token& t, Objective objective) {
  if (t.log_ratio == 0) return 0;
  const double p = std::exp(t.logp);
  const double q = std::exp(t.logp - t.log_ratio);
  if (objective == Objective::kTotalVariation) return p - q;
  // As verl, which keeps the logarithm finite by the same 1e-8. A token that was impossible has no first term.
  const double first = q == 0 ? 0 : -q * t.log_ratio;
  const double kl = first + (1 - q) * std::log((1 - q + 1e-8) / (1 - p + 1e-8));
  return p > q ? kl : p < q ? -kl : p - q;
}

Mapped weighted(const Token& t, double factor, double measure) {
  const double derivative = -factor * t.advantage;
  return {derivative == 0 ? 0.0 : derivative * t.logp, derivative, measure};
}

Mapped map_of(const Token& t, const PolicyOptions& options) {
  const auto objective = static_cast<Objective>(static_cast<int32_t>(options.objective));
  switch (objective) {
    case Objective::kClip: {
      // Where the ratio stands at a bound, it does not follow the log-probability.
      const bool fixed = t.ratio < t.low || t.ratio > t.high;
      return {-bounded(t.ratio, t.low, t.high) * t.advantage, fixed ? 0.0 : -t.ratio * t.advantage, t.ratio};
    }
    case Objective::kWeighted:
      return weighted(t, bounded(t.ratio, t.low, t.high), t.ratio);
    case Objective::kGate: {
      const double distance = t.low * (t.ratio - 1);
      const double gate = 1 / (1 + std::exp(-distance));
      // 1 - gate without cancellation.
      const double derivative = -4 * gate / (1 + std::exp(distance)) * t.ratio * t.advantage;
      return {-4 * gate / t.low * t.advantage, derivative, t.ratio};
    }
    case Objective::kTotalVariation:
    case Objective::kBinaryKl: {
      const double measure = divergence(t, objective);
      const double capped = t.ratio > options.ratio_cap ? options.ratio_cap : t.ratio;
      return weighted(t, measure < t.low || measure > t.high ? 0.0 : capped, measure);
    }
    case Objective::kSquare: {
      const double gain = t.advantage == 0 ? 0.0 : t.advantage * t.logp;
      return {t.low / 2 * t.log_ratio * t.log_ratio - gain, t.low * t.log_ratio - t.advantage, t.ratio};
    }
  }
  __builtin_unreachable();
}

PolicyTerms policy_term(const Token& token, const PolicyOptions& options, double factor) {
  // Without advantage there is no policy term, whatever the ratio.
  const bool is_square = options.objective == static_cast<float>(Objective::kSquare);
  if (factor == 0 || (token.advantage == 0 && !is_square)) return {};
  const Mapped mapped = map_of(token, options);
  PolicyTerms terms{};
  terms.loss = factor * mapped.loss;
  terms.derivative = factor * mapped.derivative;
  if (!(factor > 0)) return terms;
  const bool too_low = token.advantage < 0 && mapped.measure < options.flag_low;
  const bool too_high = token.advantage > 0 && mapped.measure > options.flag_high;
  terms.clipped = too_low ? -1.0f : too_high ? 1.0f : 0.0f;
  return terms;
}

PolicyTerms policy_terms(const PolicyRows& p, double logp, int64_t row) {
  const bool positive = p.advantages[row] > 0;
  const double log_ratio = p.old_logps == nullptr ? 0.0 : logp - p.old_logps[row];
  // Bounded, because inf * 0 would be NaN; a NaN stays one.
  const double any_ratio = std::exp(log_ratio);
  const double ratio = any_ratio > kLargest ? kLargest : any_ratio;
  const Token token{logp,
                    log_ratio,
                    ratio,
                    p.advantages[row],
                    positive ? p.options.low_pos : p.options.low_neg,
                    positive ? p.options.high_pos : p.options.high_neg};
  PolicyTerms terms = policy_term(token, p.options, p.factors == nullptr ? 1.0 : p.factors[row]);
  if (p.ref_logps == nullptr) return terms;
  const double delta = p.ref_logps[row] - logp;
  const double growth = std::expm1(delta);
  // An infinite estimate, which the clamp bounds, would become inf - inf.
  const double kl = growth > 1e300 ? growth : growth - delta;
  const bool outside = kl > p.options.kl_clamp;
  terms.kl = outside ? p.options.kl_clamp : kl;
  double slope = outside ? 0.0 : -growth;
  if (p.options.unbiased_kl != 0) {
    // Inside the clamp kl - growth is -delta, which the subtraction would lose.
    slope = ratio * (outside ? terms.kl : -delta);
    terms.kl *= ratio;
  }
  if (p.options.beta > 0) {
    terms.loss += p.options.beta * terms.kl;
    terms.derivative += p.options.beta * slope;
  }
  return terms;
}

// A fresh gradient: its page faults would cost more than the arithmetic.
void advise_gradient(const GradientRows& grad, const LogitRows& rows) {
  const bool contiguous =
      grad.stride_token == rows.vocab_size && grad.stride_sequence == rows.num_tokens * rows.vocab_size;
  if (grad.data == nullptr || grad.data == rows.logits || !contiguous) return;
  advise_huge_pages(grad.data, static_cast<size_t>(num_rows(rows) * rows.vocab_size * bytes_of(rows.type)));
}

void policy_row(const PolicyRows& p, const RowMath& math, int64_t row) {
  const bool wants_gradient = p.grad.data != nullptr;
  if (!p.rows.mask[row]) {
    if (wants_gradient) clear_row(p.grad, p.rows, row);
    return;
  }
  const RowStatistics statistics = statistics_of(p.rows, math, row);
  const double logp = logp_of(p.rows, statistics, row);
  const PolicyTerms terms = policy_terms(p, logp, row);
  p.loss[row] = static_cast<float>(terms.loss);
  p.logps[row] = static_cast<float>(logp);
  p.entropy[row] = static_cast<float>(statistics.entropy);
  p.kl[row] = static_cast<float>(terms.kl);
  p.clipped[row] = terms.clipped;
  if (!wants_gradient) return;
  const double slope = terms.derivative * p.weights[row];
  const double entropy_slope = p.entropy_weights == nullptr ? 0.0 : -p.entropy_weights[row];
  // Nothing to learn from this token: clipped, or no advantage.
  if (slope == 0 && entropy_slope == 0) return clear_row(p.grad, p.rows, row);
  const RowGradient gradient{p.rows.vocab_size, p.rows.inv_temperature, statistics, p.rows.token_ids[row], slope,
                             entropy_slope};
  math.gradient[static_cast<int32_t>(p.rows.type)](row_of(p.rows, row), gradient, row_of(p.grad, p.rows, row));
}

void logp_row(const LogpRows& p, const RowMath& math, int64_t row) {
  if (!p.rows.mask[row]) return;
  const RowStatistics statistics = statistics_of(p.rows, math, row);
  p.logps[row] = static_cast<float>(logp_of(p.rows, statistics, row));
  p.entropy[row] = static_cast<float>(statistics.entropy);
  p.normaliser[2 * row] = static_cast<float>(statistics.largest);
  p.normaliser[2 * row + 1] = static_cast<float>(statistics.log_sum);
}

void logp_row_backward(const LogpRowsBackward& p, const RowMath& math, int64_t row) {
  const double slope = p.rows.mask[row] ? p.grad_logps[row] : 0.0;
  const double entropy_slope = p.rows.mask[row] && p.grad_entropy != nullptr ? p.grad_entropy[row] : 0.0;
  if (slope == 0 && entropy_slope == 0) return clear_row(p.grad, p.rows, row);
  const RowStatistics statistics{p.normaliser[2 * row], p.normaliser[2 * row + 1], p.entropy[row]};
  const RowGradient gradient{p.rows.vocab_size, p.rows.inv_temperature, statistics, p.rows.token_ids[row], slope,
                             entropy_slope};
  math.gradient[static_cast<int32_t>(p.rows.type)](row_of(p.rows, row), gradient, row_of(p.grad, p.rows, row));
}

}  // namespace

void policy_rows_cpu(const PolicyRows& params, int32_t num_threads) {
  const RowMath& math = row_math();
  advise_gradient(params.grad, params.rows);
  parallel_for_each(num_rows(params.rows), num_threads, [&](int64_t row) { policy_row(params, math, row); });
}

void logp_rows_cpu(const LogpRows& params, int32_t num_threads) {
  const RowMath& math = row_math();
  parallel_for_each(num_rows(params.rows), num_threads, [&](int64_t row) { logp_row(params, math, row); });
}

void logp_rows_backward_cpu(const LogpRowsBackward& params, int32_t num_threads) {
  const RowMath& math = row_math();
  advise_gradient(params.grad, params.rows);
  parallel_for_each(num_rows(params.rows), num_threads, [&](int64_t row) { logp_row_backward(params, math, row); });
}

}  // namespace zoomzero
