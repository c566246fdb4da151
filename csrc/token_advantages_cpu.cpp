// Counting, group statistics and writing of token_advantages on the CPU, in float64 until the result.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "token_advantages.h"

namespace zoomzero {
namespace {

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

double credited(const TokenAdvantages& p, const double* rewards, int64_t segment) {
  double sum = 0;
  for (int64_t r = 0; r < p.num_rewards; ++r) sum += rewards[r] * p.credit[r * p.num_segments + segment];
  return sum;
}

double largest_credit_sum(const TokenAdvantages& p, const double* rewards) {
  double sum = 0;
  for (int64_t r = 0; r < p.num_rewards; ++r) {
    const double* row = p.credit + r * p.num_segments;
    sum += rewards[r] * *std::max_element(row, row + p.num_segments);
  }
  return sum;
}

constexpr auto kOnce = [](int64_t) { return 1.0; };

// table[b, s] before normalisation: the credited reward, or in "sequence" one value for all segments.
void fill_values(const TokenAdvantages& p, int64_t first, int64_t last) {
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
void standardise_column(const TokenAdvantages& p, int64_t first, int64_t last, int64_t segment) {
  const auto cell = [&](int64_t k) -> double& { return p.table[p.members[first + k] * p.num_segments + segment]; };
  std::vector<double> values(static_cast<size_t>(last - first));
  for (int64_t k = 0; k < last - first; ++k) values[static_cast<size_t>(k)] = cell(k);
  standardise(
      last - first, [&](int64_t k) { return values[static_cast<size_t>(k)]; }, kOnce, p.eps,
      [&](int64_t k, double advantage) { cell(k) = advantage; });
}

void standardise_tokens(const TokenAdvantages& p, int64_t first, int64_t last) {
  const int64_t cells = (last - first) * p.num_segments;
  const auto index = [&](int64_t k) {
    return p.members[first + k / p.num_segments] * p.num_segments + k % p.num_segments;
  };
  std::vector<double> values(static_cast<size_t>(cells));
  for (int64_t k = 0; k < cells; ++k) values[static_cast<size_t>(k)] = p.table[index(k)];
  standardise(
      cells, [&](int64_t k) { return values[static_cast<size_t>(k)]; }, [&](int64_t k) { return p.counts[index(k)]; },
      p.eps, [&](int64_t k, double advantage) { p.table[index(k)] = advantage; });
}

// Each reward over the responses of the group, then the credited sum of the results.
void standardise_rewards(const TokenAdvantages& p, int64_t first, int64_t last) {
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

}  // namespace

int32_t count_segments_cpu(const TokenAdvantages& p, int64_t response) {
  constexpr int32_t kMasked = 256;
  // Two histograms, so that runs of one segment do not wait for their own last increment.
  int32_t histograms[2][kMasked + 1] = {};
  const uint8_t* segments = p.segments + response * p.num_tokens;
  const bool* mask = p.mask + response * p.num_tokens;
  for (int64_t t = 0; t < p.num_tokens; ++t) ++histograms[t & 1][mask[t] ? segments[t] : kMasked];
  for (int64_t s = 0; s < p.num_segments; ++s) {
    p.counts[response * p.num_segments + s] = histograms[0][s] + histograms[1][s];
  }
  for (int32_t s = static_cast<int32_t>(p.num_segments); s < kMasked; ++s) {
    if (histograms[0][s] + histograms[1][s] > 0) return s;
  }
  return -1;
}

void standardise_group_cpu(const TokenAdvantages& p, int64_t first, int64_t last) {
  fill_values(p, first, last);
  if (p.normalization == Normalization::kNone) return;
  if (last - first == 1) {
    // A group of one keeps mean 0 and standard deviation 1.
    double* row = p.table + p.members[first] * p.num_segments;
    for (int64_t s = 0; s < p.num_segments; ++s) row[s] /= 1.0 + p.eps;
    return;
  }
  switch (p.normalization) {
    case Normalization::kTokens: return standardise_tokens(p, first, last);
    case Normalization::kRewards: return standardise_rewards(p, first, last);
    default:
      for (int64_t s = 0; s < p.num_segments; ++s) standardise_column(p, first, last, s);
  }
}

void write_advantages_cpu(const TokenAdvantages& p, int64_t response) {
  const double* row = p.table + response * p.num_segments;
  float values[256] = {};
  for (int64_t s = 0; s < p.num_segments; ++s) values[s] = static_cast<float>(row[s]);
  const uint8_t* segments = p.segments + response * p.num_tokens;
  const bool* mask = p.mask + response * p.num_tokens;
  float* out = p.advantages + response * p.num_tokens;
  for (int64_t t = 0; t < p.num_tokens; ++t) out[t] = mask[t] ? values[segments[t]] : 0.0f;
}

}  // namespace zoomzero
