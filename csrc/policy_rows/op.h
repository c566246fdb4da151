// The pass over rows of logits of the policy losses: parameters and entry points, raw pointers only.
//
// Problem: for each valid token of [B, T], statistics of its row of V logits, the terms of the clipped policy loss, and the
// gradient of the logits. Parallelisation: rows are independent, threads take them one by one, since masked rows cost
// nothing. Memory traffic: one read and one write of the valid rows; masked rows are only written, with zeros.
#pragma once

#include <cstdint>

#include "policy_rows/rows.h"

namespace zoomzero {

struct LogitRows {
  const void* logits;  // [B, T, V], last stride 1
  LogitType type;
  int64_t stride_sequence;  // in elements
  int64_t stride_token;
  int64_t num_tokens;  // T
  int64_t vocab_size;
  const int64_t* token_ids;  // [B, T], as all that follow
  const bool* mask;
  float inv_temperature;
};

// A tensor like the logits, with its own strides; may share their memory.
struct GradientRows {
  void* data;  // nullptr: no gradient is wanted
  int64_t stride_sequence;
  int64_t stride_token;
};

struct PolicyRows {
  LogitRows rows;
  const float* advantages;  // [B, T]
  const float* weights;
  const float* old_logps;  // nullptr: on-policy
  const float* ref_logps;  // nullptr: no KL
  float beta;
  float clip_low;
  float clip_high;
  float kl_clamp;     // inf: no clamp
  bool unbiased_kl;   // the KL estimate is multiplied by the ratio
  float* loss;     // outputs [B, T], zeroed by the caller
  float* logps;
  float* entropy;
  float* kl;
  float* clipped;
  GradientRows grad;
};

struct LogpRows {
  LogitRows rows;
  float* logps;  // outputs [B, T], zeroed by the caller
  float* entropy;
  float* normaliser;  // [B, T, 2]: largest, log_sum
};

struct LogpRowsBackward {
  LogitRows rows;
  const float* entropy;
  const float* normaliser;
  const float* grad_logps;
  const float* grad_entropy;  // nullptr: none
  GradientRows grad;
};

// Each handles the row of one token, row in [0, B * T).
void policy_row_cpu(const PolicyRows& params, const RowMath& math, int64_t row);
void logp_row_cpu(const LogpRows& params, const RowMath& math, int64_t row);
void logp_row_backward_cpu(const LogpRowsBackward& params, const RowMath& math, int64_t row);

}  // namespace zoomzero
