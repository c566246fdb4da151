// token_advantages: parameters and entry point.
//
// Problem: advantages [B, T] from rewards [B, R], credit [R, S], segments [B, T] and groups of responses. The reward of
// a token depends on its response and segment alone, so the statistics of a group follow from the counts of valid
// tokens by response and segment. Parallelisation: counting and writing over responses; the statistics of groups are
// small. Memory traffic: mask and segments are read twice (2 bytes per token each time), advantages written once (4
// bytes).
#pragma once

#include <cstdint>

namespace zoomzero {

enum class Normalization : int32_t { kTokens = 0, kSegments = 1, kRewards = 2, kSequence = 3, kNone = 4 };

struct TokenAdvantages {
  const double* rewards;    // [B, R]
  const double* credit;     // [R, S]
  const uint8_t* segments;  // [B, T]
  const bool* mask;         // [B, T]
  int64_t batch;            // B
  int64_t num_tokens;       // T
  int64_t num_rewards;      // R
  int64_t num_segments;     // S, at most 256
  Normalization normalization;
  double eps;
  const int64_t* group_ids;  // [B], any values in any order
  float* advantages;         // [B, T] output
};

// Writes the advantages, or returns a segment of a valid token that is >= S, if there is one; else -1.
int32_t token_advantages_cpu(const TokenAdvantages& params, int32_t num_threads);

}  // namespace zoomzero
