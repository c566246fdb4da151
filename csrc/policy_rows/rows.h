// Maths over one row of logits, compiled once per instruction set; see Note [Instruction sets] in cpu_capability.h.
#pragma once

#include <cstdint>

#include "common/element_type.h"

namespace zoomzero {

// largest = max logits, log_sum = log sum exp((logits - largest) * inv_temperature), entropy in nats. As one number,
// the log-sum-exp, the first two would lose log_sum's digits under large logits. The largest is taken before any
// rounding, so that no difference is above 0, and no log-probability: see Note [Scaled alike] in
// zoomzero_kernels/policy/rows.py.
struct RowStatistics {
  double largest;
  double log_sum;
  double entropy;
};

// Gradient of slope * logp[token] + entropy_slope * entropy in the logits of a row.
struct RowGradient {
  int64_t vocab_size;
  float inv_temperature;
  RowStatistics statistics;
  int64_t token;
  double slope;
  double entropy_slope;
};

struct RowMath {
  // (row, vocab_size, inv_temperature); one function per ElementType.
  RowStatistics (*statistics[kNumElementTypes])(const void*, int64_t, float);
  // (row, description, out), out may be row itself.
  void (*gradient[kNumElementTypes])(const void*, const RowGradient&, void*);
};

extern const RowMath kRowMathDefault, kRowMathAvx2, kRowMathAvx512;

}  // namespace zoomzero
