// Maths over one row of logits, compiled once for each instruction set; see Note [Instruction sets].
//
// Note [Instruction sets]: the same source, rows.inl, is compiled with the flags of each instruction set and
// exports one table of functions. A table is chosen at run time, so that one build runs on any processor of its
// architecture. The source uses compiler vectors as wide as its registers: GCC splits wider ones through memory, at ten
// times the time.
#pragma once

#include <cstdint>

namespace zoomzero {

enum class LogitType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
inline constexpr int32_t kNumLogitTypes = 3;

// With z = logits * inv_temperature: largest = max z, log_sum = log sum exp(z - largest), entropy in nats. Their sum,
// the log-sum-exp, would lose log_sum's digits under large logits.
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
  const char* name;
  // (row, vocab_size, inv_temperature); one function a LogitType.
  RowStatistics (*statistics[kNumLogitTypes])(const void*, int64_t, float);
  // (row, description, out), out may be row itself.
  void (*gradient[kNumLogitTypes])(const void*, const RowGradient&, void*);
};

extern const RowMath kRowMathDefault;
extern const RowMath kRowMathAvx2;
extern const RowMath kRowMathAvx512;

// z of one element, in float64.
double scaled_logit(const void* row, LogitType type, int64_t index, float inv_temperature);

// The table for this processor.
const RowMath& row_math();

}  // namespace zoomzero
