// The pass over rows of logits of the policy losses: parameters and entry points, raw pointers only.
//
// Problem: for each valid token of [B, T], statistics of its row of V logits, the terms of the clipped policy loss, and
// the gradient of the logits. Parallelisation: rows are independent, threads take them one by one, since masked rows
// cost nothing. Memory traffic: one read and one write of the valid rows; masked rows are only written, with zeros.
#pragma once

#include <cstdint>

#include "common/element_type.h"

namespace zoomzero {

struct LogitRows {
  const void* logits;  // [B, T, V], last stride 1
  ElementType type;
  int64_t num_sequences;    // B
  int64_t num_tokens;       // T
  int64_t vocab_size;       // V
  int64_t stride_sequence;  // in elements
  int64_t stride_token;
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

// The per-token objective: the fields of Python's PolicyOptions in their order, all numbers, so that a tuple of floats
// fills it. See Note [Maps] in zoomzero_kernels/policy/objectives.py.
struct PolicyOptions {
  float temperature;  // of LogitRows::inv_temperature, which is rounded once from float64
  float objective;    // an Objective
  float low_pos;      // bounds of the objective for advantages above 0
  float high_pos;
  float low_neg;  // for other advantages
  float high_neg;
  float flag_low;   // below it counts as clipped under a negative advantage
  float flag_high;  // above it under a positive one
  float ratio_cap;
  float beta;
  float kl_clamp;     // inf: no clamp
  float unbiased_kl;  // not 0: the KL estimate is multiplied by the ratio
};

enum class Objective : int32_t { kClip, kWeighted, kGate, kTotalVariation, kBinaryKl, kSquare };

struct PolicyRows {
  LogitRows rows;
  PolicyOptions options;
  const float* advantages;  // [B, T]
  const float* weights;
  const float* old_logps;        // nullptr: on-policy
  const float* ref_logps;        // nullptr: no KL
  const float* factors;          // of the policy term; nullptr: 1
  const float* entropy_weights;  // what of each entropy is taken from the loss; nullptr: nothing
  float* loss;                   // outputs [B, T], zeroed by the caller
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

void policy_rows_cpu(const PolicyRows& params, int32_t num_threads);
void logp_rows_cpu(const LogpRows& params, int32_t num_threads);
void logp_rows_backward_cpu(const LogpRowsBackward& params, int32_t num_threads);

}  // namespace zoomzero
