// Every CPU loop against plain float64 arithmetic, without Python: for compilers and processors that have no torch
// here. Prints what differs and exits with 1. test_cpu_loops.py builds it and runs it natively and under an emulator.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "common/cpu_capability.h"
#include "common/half_types.h"
#include "common/parallel.h"
#include "frame_resample/op.h"
#include "policy_rows/op.h"
#include "token_advantages/op.h"
#include "token_resample/op.h"

namespace {

using namespace zoomzero;

int num_failures = 0;
int num_checks = 0;

// `relative` of the larger value, and `relative` where both are near 0.
void check_close(const std::string& what, double got, double wanted, double relative) {
  ++num_checks;
  const bool both_nan = std::isnan(got) && std::isnan(wanted);
  if (both_nan || got == wanted || std::fabs(got - wanted) <= relative * std::max(1.0, std::fabs(wanted))) return;
  if (++num_failures <= 20) std::printf("%s: wanted %.9g, got %.9g\n", what.c_str(), wanted, got);
}

// Values of any element type, kept as bytes.
struct Elements {
  ElementType type;
  std::vector<uint8_t> bytes;

  Elements(ElementType element_type, size_t count)
      : type(element_type), bytes(count * static_cast<size_t>(bytes_of(element_type))) {}

  void set(size_t i, float value) {
    switch (type) {
      case ElementType::kFloat32:
        return put(i, value);
      case ElementType::kBFloat16:
        return put(i, from_float<BFloat16Bits>(value));
      case ElementType::kFloat16:
        return put(i, from_float<Float16Bits>(value));
    }
  }

  double at(size_t i) const {
    switch (type) {
      case ElementType::kFloat32:
        return get<float>(i);
      case ElementType::kBFloat16:
        return to_float(get<BFloat16Bits>(i));
      case ElementType::kFloat16:
        return to_float(get<Float16Bits>(i));
    }
    return 0;
  }

 private:
  template <typename T>
  void put(size_t i, T value) {
    std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
  }

  template <typename T>
  T get(size_t i) const {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    return value;
  }
};

// One rounding to the type, with some room for the sums before it.
double tolerance(ElementType type) {
  constexpr double kTolerances[] = {2e-5, 8e-3, 1e-3};
  return kTolerances[static_cast<int32_t>(type)];
}

std::mt19937 generator(7);

float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator); }

struct RowTruth {
  std::vector<double> probabilities;
  double log_sum_exp = 0;
  double entropy = 0;
};

RowTruth row_truth(const Elements& logits, size_t first, size_t vocab, double inv_temperature) {
  RowTruth truth;
  double largest = -INFINITY;
  for (size_t i = 0; i < vocab; ++i) largest = std::max(largest, logits.at(first + i) * inv_temperature);
  double sum = 0;
  for (size_t i = 0; i < vocab; ++i) sum += std::exp(logits.at(first + i) * inv_temperature - largest);
  truth.log_sum_exp = largest + std::log(sum);
  for (size_t i = 0; i < vocab; ++i) {
    const double logp = logits.at(first + i) * inv_temperature - truth.log_sum_exp;
    truth.probabilities.push_back(std::exp(logp));
    truth.entropy -= std::exp(logp) * logp;
  }
  return truth;
}

struct RowCase {
  static constexpr size_t kSequences = 2, kTokens = 5, kRows = kSequences * kTokens;
  size_t vocab;
  Elements logits;
  std::vector<int64_t> ids;
  bool mask[kRows];
  LogitRows rows;

  RowCase(ElementType type, size_t vocab_size) : vocab(vocab_size), logits(type, kRows * vocab_size), ids(kRows) {
    for (size_t i = 0; i < kRows * vocab; ++i) logits.set(i, uniform(-2, 2));
    for (size_t r = 0; r < kRows; ++r) {
      ids[r] = static_cast<int64_t>(generator() % vocab);
      mask[r] = r != 3;
    }
    const int64_t v = static_cast<int64_t>(vocab);
    const int64_t tokens = kTokens;
    rows = {logits.bytes.data(), type, kSequences, tokens, v, tokens * v, v, ids.data(), mask, 1.0f / 0.8f};
  }
};

std::vector<float> values(size_t count, float low, float high) {
  std::vector<float> result(count);
  for (float& value : result) value = uniform(low, high);
  return result;
}

void check_policy_rows(ElementType type, size_t vocab, int32_t num_threads) {
  RowCase c(type, vocab);
  constexpr size_t kRows = RowCase::kRows;
  Elements grad(type, kRows * vocab);
  const auto advantages = values(kRows, -1, 1), weights = values(kRows, 0.1f, 1);
  const float mean_logp = -std::log(static_cast<float>(vocab));
  const auto old_logps = values(kRows, mean_logp - 1, mean_logp + 1);
  const auto ref_logps = values(kRows, mean_logp - 1, mean_logp + 1);
  std::vector<float> loss(kRows), logps(kRows), entropy(kRows), kl(kRows), clipped(kRows);
  PolicyRows params{};
  params.rows = c.rows;
  params.options.beta = 0.1f;
  params.options.kl_clamp = params.options.high_neg = INFINITY;
  params.options.low_pos = -INFINITY;
  params.options.low_neg = params.options.flag_low = 1.0f - 0.2f;
  params.options.high_pos = params.options.flag_high = 1.0f + 0.3f;
  params.advantages = advantages.data();
  params.weights = weights.data();
  params.old_logps = old_logps.data();
  params.ref_logps = ref_logps.data();
  params.loss = loss.data();
  params.logps = logps.data();
  params.entropy = entropy.data();
  params.kl = kl.data();
  params.clipped = clipped.data();
  params.grad = {grad.bytes.data(), c.rows.stride_sequence, c.rows.stride_token};
  policy_rows_cpu(params, num_threads);
  for (size_t r = 0; r < kRows; ++r) {
    const std::string at = "policy_rows vocab " + std::to_string(vocab) + " row " + std::to_string(r);
    if (!c.mask[r]) {
      for (size_t i = 0; i < vocab; ++i) check_close(at + " masked gradient", grad.at(r * vocab + i), 0, 0);
      continue;
    }
    const RowTruth truth = row_truth(c.logits, r * vocab, vocab, c.rows.inv_temperature);
    const size_t id = static_cast<size_t>(c.ids[r]);
    const double logp = c.logits.at(r * vocab + id) * c.rows.inv_temperature - truth.log_sum_exp;
    const double ratio = std::exp(logp - old_logps[r]), advantage = advantages[r];
    const double unclipped = ratio * advantage;
    const double bounded = std::clamp(ratio, 1.0 - 0.2f, 1.0 + 0.3f) * advantage;
    const bool is_clipped = bounded < unclipped;
    const double delta = ref_logps[r] - logp;
    const double kl_truth = std::expm1(delta) - delta;
    check_close(at + " logp", logps[r], logp, 1e-5);
    check_close(at + " entropy", entropy[r], truth.entropy, 1e-5);
    check_close(at + " kl", kl[r], kl_truth, 1e-5);
    check_close(at + " clipped", clipped[r], !is_clipped ? 0 : advantage < 0 ? -1 : 1, 0);
    check_close(at + " loss", loss[r], -std::min(bounded, unclipped) + 0.1f * kl_truth, 1e-5);
    const double slope = ((is_clipped ? 0 : -unclipped) - 0.1f * std::expm1(delta)) * weights[r];
    for (size_t i = 0; i < vocab; ++i) {
      const double wanted = slope * ((i == id) - truth.probabilities[i]) * c.rows.inv_temperature;
      check_close(at + " gradient", grad.at(r * vocab + i), wanted, tolerance(type));
    }
  }
}

void check_logp_rows(ElementType type, size_t vocab, int32_t num_threads) {
  RowCase c(type, vocab);
  constexpr size_t kRows = RowCase::kRows;
  std::vector<float> logps(kRows), entropy(kRows), normaliser(2 * kRows);
  logp_rows_cpu({c.rows, logps.data(), entropy.data(), normaliser.data()}, num_threads);
  const auto grad_logps = values(kRows, -1, 1), grad_entropy = values(kRows, -1, 1);
  Elements grad(type, kRows * vocab);
  const GradientRows target{grad.bytes.data(), c.rows.stride_sequence, c.rows.stride_token};
  logp_rows_backward_cpu({c.rows, entropy.data(), normaliser.data(), grad_logps.data(), grad_entropy.data(), target},
                         num_threads);
  for (size_t r = 0; r < kRows; ++r) {
    if (!c.mask[r]) continue;
    const std::string at = "logp_rows vocab " + std::to_string(vocab) + " row " + std::to_string(r);
    const RowTruth truth = row_truth(c.logits, r * vocab, vocab, c.rows.inv_temperature);
    const size_t id = static_cast<size_t>(c.ids[r]);
    const double logp = c.logits.at(r * vocab + id) * c.rows.inv_temperature - truth.log_sum_exp;
    check_close(at + " logp", logps[r], logp, 1e-5);
    check_close(at + " entropy", entropy[r], truth.entropy, 1e-5);
    for (size_t i = 0; i < vocab; ++i) {
      const double p = truth.probabilities[i];
      const double wanted = grad_logps[r] * ((i == id) - p) - grad_entropy[r] * p * (std::log(p) + truth.entropy);
      check_close(at + " gradient", grad.at(r * vocab + i), wanted * c.rows.inv_temperature, tolerance(type));
    }
  }
}

void check_token_advantages(Normalization normalization, int32_t num_threads) {
  constexpr size_t kBatch = 6, kTokens = 37, kRewards = 2, kSegments = 3;
  std::vector<double> rewards(kBatch * kRewards), credit(kRewards * kSegments);
  for (double& value : rewards) value = uniform(0, 1);
  for (double& value : credit) value = uniform(0, 1);
  std::vector<uint8_t> segments(kBatch * kTokens);
  bool mask[kBatch * kTokens];
  for (size_t i = 0; i < segments.size(); ++i) {
    segments[i] = static_cast<uint8_t>(generator() % kSegments);
    mask[i] = generator() % 5 != 0;
  }
  const int64_t groups[kBatch] = {9, -4, 9, -4, 9, 2};
  std::vector<float> advantages(kBatch * kTokens);
  const TokenAdvantages params{rewards.data(), credit.data(), segments.data(), mask, kBatch, kTokens,
                               kRewards,       kSegments,     normalization,   1e-6, groups, advantages.data()};
  check_close("token_advantages segments", token_advantages_cpu(params, num_threads), -1, 0);
  const auto reward_of = [&](size_t b, size_t s) {
    double sum = 0;
    for (size_t r = 0; r < kRewards; ++r) sum += credit[r * kSegments + s] * rewards[b * kRewards + r];
    return sum;
  };
  for (size_t b = 0; b < kBatch; ++b) {
    double number = 0, total = 0, squares = 0, responses = 0;
    for (int pass = 0; pass < 2; ++pass) {
      for (size_t o = 0; o < kBatch; ++o) {
        if (groups[o] != groups[b]) continue;
        responses += pass == 0;
        for (size_t t = 0; t < kTokens; ++t) {
          if (!mask[o * kTokens + t]) continue;
          const double x = reward_of(o, segments[o * kTokens + t]);
          if (pass == 0) ++number, total += x;
          if (pass == 1) squares += (x - total / number) * (x - total / number);
        }
      }
    }
    const bool alone = responses == 1;
    const double mean = alone ? 0 : total / number, deviation = alone ? 1 : std::sqrt(squares / (number - 1));
    for (size_t t = 0; t < kTokens; ++t) {
      const double x = reward_of(b, segments[b * kTokens + t]);
      const double standard = normalization == Normalization::kNone ? x : (x - mean) / (deviation + 1e-6);
      check_close("token_advantages", advantages[b * kTokens + t], mask[b * kTokens + t] ? standard : 0, 1e-5);
    }
  }
  segments[0] = 200;
  mask[0] = true;
  check_close("token_advantages wrong segment", token_advantages_cpu(params, num_threads), 200, 0);
}

// The share of cell j of `in` that cell i of `out` covers, both of one axis of length 1, over the size of a cell of
// `out`.
double share(int64_t i, int64_t out, int64_t j, int64_t in) {
  const double begin = std::max(double(i) / out, double(j) / in), end = std::min((i + 1.0) / out, (j + 1.0) / in);
  return std::max(0.0, end - begin) * out;
}

void check_token_resample(ElementType type, bool backward, int32_t num_threads) {
  constexpr size_t kDim = 1030;  // more than a block of channels, and a tail
  constexpr int64_t kSides[2][4] = {{5, 4, 2, 3}, {2, 3, 4, 3}};
  std::vector<TokenSlice> slices;
  int64_t num_in = 0, num_out = 0, grid_rows = 0;
  for (const auto& side : kSides) {
    const int64_t in_h = side[0], in_w = side[1], out_h = side[2], out_w = side[3];
    slices.push_back({num_in, in_h, in_w, num_out, out_h, out_w, grid_rows});
    num_in += in_h * in_w, num_out += out_h * out_w, grid_rows += out_h;
  }
  Elements in(type, static_cast<size_t>(num_in) * kDim), out(type, static_cast<size_t>(num_out) * kDim);
  for (size_t i = 0; i < static_cast<size_t>(num_in) * kDim; ++i) in.set(i, uniform(-2, 2));
  token_resample_cpu(
      {in.bytes.data(), out.bytes.data(), slices.data(), nullptr, 2, num_out, grid_rows, kDim, backward, type},
      num_threads);
  for (const TokenSlice& s : slices) {
    for (int64_t cell = 0; cell < s.out_h * s.out_w; ++cell) {
      for (size_t d = 0; d < kDim; d += 103) {
        double wanted = 0;
        for (int64_t source = 0; source < s.in_h * s.in_w; ++source) {
          const int64_t y = cell / s.out_w, x = cell % s.out_w, v = source / s.in_w, u = source % s.in_w;
          // Backward, a cell of `in` hands its gradient to what it covers.
          const double weight = backward ? share(v, s.in_h, y, s.out_h) * share(u, s.in_w, x, s.out_w)
                                         : share(y, s.out_h, v, s.in_h) * share(x, s.out_w, u, s.in_w);
          wanted += weight * in.at(static_cast<size_t>(s.first_in + source) * kDim + d);
        }
        check_close("token_resample", out.at(static_cast<size_t>(s.first_out + cell) * kDim + d), wanted,
                    tolerance(type));
      }
    }
  }
}

AxisView view_of(const BicubicAxis& axis) {
  return {axis.starts.data(), axis.sizes.data(), axis.weights.data(), axis.taps, axis.precision};
}

// One output pixel of one axis, from its integer definition: taps of 1, so that no padding takes part.
int32_t resized(const AxisView& axis, int64_t i, const auto& input) {
  int32_t sum = axis.precision > 0 ? 1 << (axis.precision - 1) : 0;
  for (int32_t k = 0; k < axis.sizes[i]; ++k) sum += axis.weights[i * axis.taps + k] * input(axis.starts[i] + k);
  return std::clamp(sum >> axis.precision, 0, 255);
}

struct FrameCase {
  int32_t in_h, in_w, out_h, out_w;
  PatchLayout patches;
};

void check_frame_resample(ElementType type, const FrameCase& c, int32_t num_threads) {
  constexpr int64_t kFrames = 3;
  std::vector<uint8_t> frames(static_cast<size_t>(kFrames * c.in_h * c.in_w * kChannels));
  for (uint8_t& value : frames) value = static_cast<uint8_t>(generator() % 256);
  const int64_t indices[kFrames] = {2, 0, 1};
  const BicubicAxis horizontal = make_bicubic_axis(c.in_w, c.out_w, frame_resample_cpu_taps_multiple());
  const BicubicAxis vertical = make_bicubic_axis(c.in_h, c.out_h, 1);
  const BicubicAxis plain_horizontal = make_bicubic_axis(c.in_w, c.out_w, 1);
  const int64_t tp = c.patches.patch_size == 0 ? 1 : c.patches.temporal_patch_size;
  const int64_t slots = (kFrames + tp - 1) / tp * tp;
  Elements out(type, static_cast<size_t>(slots * c.out_h * c.out_w * kChannels));
  FrameResampleParams p{};
  p.frames = frames.data();
  p.stride_frame = int64_t{c.in_h} * c.in_w * kChannels;
  p.stride_row = int64_t{c.in_w} * kChannels;
  p.stride_pixel = kChannels;
  p.stride_channel = 1;
  p.num_source_frames = kFrames;
  p.frame_indices = indices;
  p.num_frames = kFrames;
  p.in_h = c.in_h, p.in_w = c.in_w, p.out_h = c.out_h, p.out_w = c.out_w;
  p.horizontal = view_of(horizontal);
  p.vertical = view_of(vertical);
  for (int32_t channel = 0; channel < kChannels; ++channel) {
    p.scale[channel] = 0.015f + 0.001f * static_cast<float>(channel);
    p.shift[channel] = -1.9f;
  }
  p.patches = c.patches;
  p.type = type;
  p.output = out.bytes.data();
  frame_resample_cpu(p, num_threads);
  const AxisView across = view_of(plain_horizontal);
  for (int64_t slot = 0; slot < slots; ++slot) {
    const uint8_t* frame = frames.data() + indices[std::min(slot, kFrames - 1)] * p.stride_frame;
    for (int64_t y = 0; y < c.out_h; ++y) {
      for (int64_t x = 0; x < c.out_w; ++x) {
        const int64_t side = c.patches.patch_size == 0 ? c.out_w : c.patches.patch_size;
        const OutputRun run = output_run(p, slot, y, x / side * side);
        for (int32_t channel = 0; channel < kChannels; ++channel) {
          const int32_t pixel = resized(p.vertical, y, [&](int64_t row) {
            return resized(across, x, [&](int64_t column) -> int32_t {
              return frame[row * p.stride_row + column * kChannels + channel];
            });
          });
          const float normalised = std::fma(static_cast<float>(pixel), p.scale[channel], p.shift[channel]);
          Elements wanted(type, 1);
          wanted.set(0, normalised);
          const int64_t place = run.first + channel * run.channel_stride + x % side;
          check_close("frame_resample", out.at(static_cast<size_t>(place)), wanted.at(0), 0);
        }
      }
    }
  }
}

void check_everything(int32_t num_threads) {
  for (const ElementType type : {ElementType::kFloat32, ElementType::kBFloat16, ElementType::kFloat16}) {
    for (const size_t vocab : {size_t{1}, size_t{37}, size_t{2050}}) {
      check_policy_rows(type, vocab, num_threads);
      check_logp_rows(type, vocab, num_threads);
    }
    for (const bool backward : {false, true}) check_token_resample(type, backward, num_threads);
    for (const FrameCase& c : {FrameCase{33, 47, 28, 56, {14, 2, 2}}, FrameCase{64, 90, 28, 28, {14, 2, 2}},
                               FrameCase{41, 50, 19, 31, {0, 1, 1}}, FrameCase{5, 7, 11, 13, {0, 1, 1}}}) {
      check_frame_resample(type, c, num_threads);
    }
  }
  for (const Normalization normalization : {Normalization::kTokens, Normalization::kNone}) {
    check_token_advantages(normalization, num_threads);
  }
}

}  // namespace

int main() {
  for (const int32_t num_threads : {1, 3}) check_everything(num_threads);
  std::printf("%s, %s: %d checks, %d failures\n", cpu_capability_name(), kHasOpenMP ? "OpenMP" : "one thread",
              num_checks, num_failures);
  return num_failures == 0 ? 0 : 1;
}
