// Counting, group statistics and writing of token_advantages on the CPU, in float64 until the result.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "common/parallel.h"
#include "token_advantages/op.h"

namespace zoomzero {
namespace {

// The parameters with what the passes share.
struct Work : TokenAdvantages {
  const int64_t* members;  // [B] responses ordered by group
  double* counts;          // [B, S] valid tokens by response and segment
  double* table;           // [B, S] value, then advantage, by response and segment
};

// Deviations below this share of the largest value are rounding of the float64 sums: equal rewards give exactly 0.
constexpr double kEqual = 1e-12;

// Values of one group, visited as value(k) with multiplicity count(k), k in [0, size).
template <typename Value, typename Count, typename Store>
void standardise(int64_t size, const Value& value, const Count& count, double eps, const Store& store) {
  double lowest = std::numeric_limits<double>::infinity();
  double scale = 0;
  for (int64_t k = 0; k < size; ++k) {
    if (count(k) == 0) continue;
    lowest = std::min(lowest, value(k));
    scale = std::max(scale, std::fabs(value(k)));
  }
  // Shifting by one of the values keeps both passes exact for equal values.
  const auto shifted = [&](int64_t k) {
    const double difference = value(k) - lowest;
    return std::fabs(difference) <= kEqual * scale ? 0.0 : difference;
  };
  double number = 0;
  double total = 0;
  for (int64_t k = 0; k < size; ++k) {
    if (count(k) == 0) continue;
    number += count(k);
    total += count(k) * shifted(k);
  }
  const double mean = number > 0 ? total / number : 0;
  double squares = 0;
  for (int64_t k = 0; k < size; ++k) {
    if (count(k) == 0) continue;
    const double deviation = shifted(k) - mean;
    squares += count(k) * deviation * deviation;
  }
  const double deviation_scale = std::sqrt(squares / std::max(number - 1, 1.0)) + eps;
  for (int64_t k = 0; k < size; ++k) {
    const double deviation = count(k) == 0 ? 0.0 : shifted(k) - mean;
    // A group without spread has no deviation either; with eps = 0 the quotient would be 0 / 0.
    store(k, deviation == 0 ? 0.0 : deviation / deviation_scale);
  }
}

double credited(const Work& p, const double* rewards, int64_t segment) {
  double sum = 0;
  for (int64_t r = 0; r < p.num_rewards; ++r) sum += rewards[r] * p.credit[r * p.num_segments + segment];
  return sum;
}

double largest_credit_sum(const Work& p, const double* rewards) {
  double sum = 0;
  for (int64_t r = 0; r < p.num_rewards; ++r) {
    const double* row = p.credit + r * p.num_segments;
    sum += rewards[r] * *std::max_element(row, row + p.num_segments);
  }
  return sum;
}

constexpr int32_t kKeys = 256;
// Shares a key with masked tokens.
constexpr int32_t kMasked = kKeys - 1;

// Segment of a valid token, kMasked of a masked one; without a branch, which a ragged mask would mispredict.
inline uint8_t key_of(uint8_t segment, bool is_valid) {
  return static_cast<uint8_t>(segment | (static_cast<uint8_t>(is_valid) - 1));
}

// Valid tokens of one segment, for few segments: sixteen tokens at a time, in bytes that are added up before they
// overflow.
int64_t count_one_segment(const uint8_t* segments, const bool* mask, int64_t num_tokens, uint8_t segment) {
  using Bytes = uint8_t __attribute__((vector_size(16)));
  constexpr int64_t kLanes = 16;
  int64_t total = 0;
  int64_t t = 0;
  while (t + kLanes <= num_tokens) {
    const int64_t stop = std::min(num_tokens - kLanes, t + 254 * kLanes);
    Bytes counts{};
    for (; t <= stop; t += kLanes) {
      Bytes here, valid;
      std::memcpy(&here, segments + t, kLanes);
      std::memcpy(&valid, mask + t, kLanes);
      counts += reinterpret_cast<Bytes>(here == segment) & valid;
    }
    for (int64_t k = 0; k < kLanes; ++k) total += counts[k];
  }
  for (; t < num_tokens; ++t) total += segments[t] == segment && mask[t];
  return total;
}

constexpr auto kOnce = [](int64_t) { return 1.0; };

// table[b, s] before normalisation: the credited reward, or in "sequence" one value for all segments.
void fill_values(const Work& p, int64_t first, int64_t last) {
  for (int64_t k = first; k < last; ++k) {
    const int64_t b = p.members[k];
    const double* rewards = p.rewards + b * p.num_rewards;
    double* row = p.table + b * p.num_segments;
    const bool whole = p.normalization == Normalization::kSequence;
    for (int64_t s = 0; s < p.num_segments; ++s) {
      row[s] = !whole ? credited(p, rewards, s) : s == 0 ? largest_credit_sum(p, rewards) : row[0];
    }
  }
}

// One column of the table over the responses of the group, each counted once.
void standardise_column(const Work& p, int64_t first, int64_t last, int64_t segment) {
  const auto cell = [&](int64_t k) -> double& { return p.table[p.members[first + k] * p.num_segments + segment]; };
  std::vector<double> values(static_cast<size_t>(last - first));
  for (int64_t k = 0; k < last - first; ++k) values[static_cast<size_t>(k)] = cell(k);
  standardise(
      last - first, [&](int64_t k) { return values[static_cast<size_t>(k)]; }, kOnce, p.eps,
      [&](int64_t k, double advantage) { cell(k) = advantage; });
}

// All cells of the group's rows of the table, each counted as often as it has valid tokens.
void standardise_tokens(const Work& p, int64_t first, int64_t last) {
  std::vector<double> values, counts;
  for (int64_t k = first; k < last; ++k) {
    const int64_t row = p.members[k] * p.num_segments;
    values.insert(values.end(), p.table + row, p.table + row + p.num_segments);
    counts.insert(counts.end(), p.counts + row, p.counts + row + p.num_segments);
  }
  std::vector<double> advantages(values.size());
  standardise(
      static_cast<int64_t>(values.size()), [&](int64_t k) { return values[static_cast<size_t>(k)]; },
      [&](int64_t k) { return counts[static_cast<size_t>(k)]; }, p.eps,
      [&](int64_t k, double advantage) { advantages[static_cast<size_t>(k)] = advantage; });
  for (int64_t k = first; k < last; ++k) {
    std::copy_n(advantages.data() + (k - first) * p.num_segments, p.num_segments,
                p.table + p.members[k] * p.num_segments);
  }
}

// Each reward over the responses of the group, then the credited sum of the results.
void standardise_rewards(const Work& p, int64_t first, int64_t last) {
  const int64_t size = last - first;
  std::vector<double> standard(static_cast<size_t>(size * p.num_rewards));
  for (int64_t r = 0; r < p.num_rewards; ++r) {
    standardise(
        size, [&](int64_t k) { return p.rewards[p.members[first + k] * p.num_rewards + r]; }, kOnce, p.eps,
        [&](int64_t k, double advantage) { standard[static_cast<size_t>(k * p.num_rewards + r)] = advantage; });
  }
  for (int64_t k = 0; k < size; ++k) {
    double* row = p.table + p.members[first + k] * p.num_segments;
    for (int64_t s = 0; s < p.num_segments; ++s) row[s] = credited(p, standard.data() + k * p.num_rewards, s);
  }
}

// Counts the valid tokens of a response; returns a segment >= S if it meets one, else -1.
int32_t count_segments(const Work& p, int64_t response) {
  const uint8_t* segments = p.segments + response * p.num_tokens;
  const bool* mask = p.mask + response * p.num_tokens;
  int64_t num_valid = 0;
  for (int64_t t = 0; t < p.num_tokens; ++t) num_valid += mask[t];
  // Few segments are counted one by one; a histogram serves many, and finds the one that has no column.
  constexpr int64_t kFewSegments = 8;
  if (p.num_segments <= kFewSegments) {
    int64_t num_counted = 0;
    for (int64_t s = 0; s < p.num_segments; ++s) {
      const int64_t count = count_one_segment(segments, mask, p.num_tokens, static_cast<uint8_t>(s));
      p.counts[response * p.num_segments + s] = static_cast<double>(count);
      num_counted += count;
    }
    if (num_counted == num_valid) return -1;
  }
  // Four histograms, so that runs of one segment do not wait for their own last increment.
  int32_t histograms[4][kKeys] = {};
  int64_t t = 0;
  for (; t + 4 <= p.num_tokens; t += 4) {
    for (int64_t k = 0; k < 4; ++k) ++histograms[k][key_of(segments[t + k], mask[t + k])];
  }
  for (; t < p.num_tokens; ++t) ++histograms[0][key_of(segments[t], mask[t])];
  for (int32_t s = 0; s < kKeys; ++s) {
    histograms[0][s] += histograms[1][s] + (histograms[2][s] + histograms[3][s]);
  }
  histograms[0][kMasked] -= static_cast<int32_t>(p.num_tokens - num_valid);
  std::copy_n(histograms[0], p.num_segments, p.counts + response * p.num_segments);
  const auto beyond =
      std::find_if(histograms[0] + p.num_segments, histograms[0] + kKeys, [](int32_t n) { return n > 0; });
  return beyond == histograms[0] + kKeys ? -1 : static_cast<int32_t>(beyond - histograms[0]);
}

// Fills the table for the group whose members are members[first .. last).
void standardise_group(const Work& p, int64_t first, int64_t last) {
  fill_values(p, first, last);
  if (p.normalization == Normalization::kNone) return;
  if (last - first == 1) {
    // A group of one keeps mean 0 and standard deviation 1.
    double* row = p.table + p.members[first] * p.num_segments;
    for (int64_t s = 0; s < p.num_segments; ++s) row[s] /= 1.0 + p.eps;
    return;
  }
  switch (p.normalization) {
    case Normalization::kTokens:
      return standardise_tokens(p, first, last);
    case Normalization::kRewards:
      return standardise_rewards(p, first, last);
    default:
      for (int64_t s = 0; s < p.num_segments; ++s) standardise_column(p, first, last, s);
  }
}

void write_advantages(const Work& p, int64_t response) {
  const double* row = p.table + response * p.num_segments;
  float values[kKeys] = {};
  for (int64_t s = 0; s < p.num_segments; ++s) values[s] = static_cast<float>(row[s]);
  const uint8_t* segments = p.segments + response * p.num_tokens;
  const bool* mask = p.mask + response * p.num_tokens;
  float* out = p.advantages + response * p.num_tokens;
  if (p.num_segments == kKeys) {
    for (int64_t t = 0; t < p.num_tokens; ++t) out[t] = mask[t] ? values[segments[t]] : 0.0f;
  } else {
    for (int64_t t = 0; t < p.num_tokens; ++t) out[t] = values[key_of(segments[t], mask[t])];
  }
}

// By group, then by position: the order of the sums, and with it the last bit, depends on the inputs alone.
std::vector<int64_t> ordered_members(const TokenAdvantages& p) {
  std::vector<int64_t> members(static_cast<size_t>(p.batch));
  std::iota(members.begin(), members.end(), int64_t{0});
  const int64_t* groups = p.group_ids;
  std::sort(members.begin(), members.end(),
            [groups](int64_t a, int64_t b) { return groups[a] != groups[b] ? groups[a] < groups[b] : a < b; });
  return members;
}

}  // namespace

int32_t token_advantages_cpu(const TokenAdvantages& params, int32_t num_threads) {
  const std::vector<int64_t> members = ordered_members(params);
  const int64_t cells = params.batch * params.num_segments;
  std::vector<double> scratch(static_cast<size_t>(2 * cells));
  const Work work{params, members.data(), scratch.data(), scratch.data() + cells};
  // A thread takes about half a nanosecond per token and pass; waiting for a second one on a busy machine can cost
  // more.
  constexpr int64_t kTokensOfThread = 1 << 17;
  const int64_t grain = std::max<int64_t>(1, kTokensOfThread / std::max<int64_t>(1, params.num_tokens));
  std::atomic<int32_t> wrong{-1};
  parallel_for(params.batch, grain, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int32_t segment = count_segments(work, b);
      if (segment >= 0) wrong = segment;
    }
  });
  if (wrong >= 0) return wrong;
  const auto group_of = [&](int64_t k) { return params.group_ids[members[static_cast<size_t>(k)]]; };
  for (int64_t first = 0; first < params.batch;) {
    int64_t last = first + 1;
    while (last < params.batch && group_of(last) == group_of(first)) ++last;
    standardise_group(work, first, last);
    first = last;
  }
  parallel_for(params.batch, grain, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) write_advantages(work, b);
  });
  return -1;
}

}  // namespace zoomzero
