// Maths over one row of logits with compiler vectors, compiled once per instruction set: see Note [Instruction sets] in
// cpu_capability.h.
//
// Problem: log-sum-exp and entropy of up to 262,144 logits, then their softmax times a number. Memory traffic: the
// first pass reads the row from memory, the second finds it in the L2 cache (a float32 row of 152k logits is 600 kB)
// and writes the gradient. Blocks of 1,024 logits stay in registers and the L1 cache between the search for the maximum
// and the sum.
#include "policy_rows/rows.h"

#include <cstring>
#include <type_traits>

#include "common/cpu_capability.h"
#include "common/half_types.h"

namespace zoomzero {
namespace {

// The floats of a register. GCC splits wider vectors through memory, at ten times the time.
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
constexpr int64_t kBlock = 1024;
using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using Ints = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));
using Words = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
using Shorts = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));

constexpr float kInfinity = __builtin_inff();

inline Floats broadcast(float value) { return Floats{} + value; }

// The larger value; NaN where `value` is NaN, as one instruction of x86 does it.
inline Floats at_least(Floats limit, Floats value) { return limit > value ? limit : value; }

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;
// 2 to this power leaves an exponent of zero bits: 0, as all below it is taken to be.
constexpr float kLowestPower = -127.0f;
// 1.5 * 2^23 + 127: adding it rounds to an integer, kept with the exponent's bias in the low mantissa bits.
constexpr float kRounder = 12582912.0f + 127.0f;

// 2^(n + f) for |f| <= 1/2 and `shifted` = n + kRounder, n from kLowestPower to 0, or NaN. 2^f is the degree-5
// polynomial that is 1 at 0 and has the least largest relative error (9e-8; weighted least squares, iterated).
inline Floats power_of_two(Floats f, Floats shifted) {
  Floats y = broadcast(1.3264728e-3f);
  y = y * f + 9.6715130e-3f;
  y = y * f + 5.5507336e-2f;
  y = y * f + 2.4022242e-1f;
  y = y * f + 6.9314700e-1f;
  y = y * f + 1.0f;
  return y * reinterpret_cast<Floats>(reinterpret_cast<Words>(shifted) << 23);
}

inline Floats widen(Shorts bits, BFloat16Bits) {
  return reinterpret_cast<Floats>(__builtin_convertvector(bits, Words) << 16);
}

// Multiplying by 2^112 rebiases the exponent, subnormal numbers included; an exponent of all ones is inf or NaN.
inline Floats widen(Shorts bits, Float16Bits) {
  const Words wide = __builtin_convertvector(bits, Words);
  const Words magnitude = (wide & 0x7FFFu) << 13;
  const Words rebiased = reinterpret_cast<Words>(reinterpret_cast<Floats>(magnitude) * 0x1p112f);
  const Words finite = reinterpret_cast<Words>(magnitude < 0x0F800000u);
  const Words special = magnitude | 0x7F800000u;
  return reinterpret_cast<Floats>(((rebiased & finite) | (special & ~finite)) | ((wide & 0x8000u) << 16));
}

inline Shorts narrow(Floats value, BFloat16Bits) {
  const Words bits = reinterpret_cast<Words>(value);
  const Words rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const Words is_number = reinterpret_cast<Words>(value == value);
  return __builtin_convertvector((rounded & is_number) | (0x7FC0u & ~is_number), Shorts);
}

// Round to nearest even. Small results are rounded by the addition of 0.5, whose ulp is that of float16's subnormals.
inline Shorts narrow(Floats value, Float16Bits) {
  const Words bits = reinterpret_cast<Words>(value);
  const Words sign = bits & 0x80000000u;
  const Words magnitude = bits ^ sign;
  const Words normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  const Words half_bits = Words{} + 0x3F000000u;
  const Floats sum = reinterpret_cast<Floats>(magnitude) + 0.5f;
  const Words tiny = reinterpret_cast<Words>(sum) - half_bits;
  const Words is_tiny = reinterpret_cast<Words>(magnitude < 0x38800000u);
  const Words is_big = reinterpret_cast<Words>(magnitude >= 0x477FF000u);
  const Words is_nan = reinterpret_cast<Words>(magnitude > 0x7F800000u);
  Words result = (tiny & is_tiny) | (normal & ~is_tiny);
  result = (0x7C00u & is_big) | (result & ~is_big);
  result = (0x7E00u & is_nan) | (result & ~is_nan);
  return __builtin_convertvector(result | (sign >> 16), Shorts);
}

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename T>
inline Floats load(const T* from) {
  Shorts bits;
  std::memcpy(&bits, from, sizeof(bits));
  return widen(bits, T{});
}

inline void store(Floats value, float* to) { std::memcpy(to, &value, sizeof(value)); }

template <typename T>
inline void store(Floats value, T* to) {
  const Shorts bits = narrow(value, T{});
  std::memcpy(to, &bits, sizeof(bits));
}

// The last, partial vector of a row; the lanes beyond it are -inf, which adds nothing to any sum.
template <typename T>
inline Floats load_tail(const T* from, int64_t count) {
  T values[kLanes] = {};
  std::memcpy(values, from, static_cast<size_t>(count) * sizeof(T));
  Floats result = load(values);
  for (int64_t i = count; i < kLanes; ++i) result[i] = -kInfinity;
  return result;
}

template <typename T>
inline void store_head(Floats value, int64_t count, T* to) {
  T values[kLanes];
  store(value, values);
  std::memcpy(to, values, static_cast<size_t>(count) * sizeof(T));
}

inline float max_of(Floats value) {
  float result = value[0];
  for (int64_t i = 1; i < kLanes; ++i) result = value[i] > result ? value[i] : result;
  return result;
}

inline double sum_of(Floats value) {
  double result = 0;
  for (int64_t i = 0; i < kLanes; ++i) result += value[i];
  return result;
}

// Running sums over the blocks of a row, relative to the largest logit so far.
struct RunningSums {
  double inv_temperature;
  float largest = -kInfinity;
  double sum = 0;       // of exp(z), z = (logit - largest) * inv_temperature
  double weighted = 0;  // of exp(z) * z

  void raise(float maximum) {
    if (!(maximum > largest)) return;
    if (largest == -kInfinity) {
      largest = maximum;
      return;
    }
    const double shift = (static_cast<double>(largest) - maximum) * inv_temperature;
    const double factor = __builtin_exp(shift);
    weighted = factor == 0 ? 0 : factor * (weighted + sum * shift);
    sum *= factor;
    largest = maximum;
  }
};

// Adds 2^(difference * scale) and its product with the difference, a finite number. The scale enters with the rounding
// to an integer, which takes no instruction of its own.
inline void accumulate(Floats difference, float scale, Floats& sum, Floats& weighted) {
  const Floats shifted = difference * scale + kRounder;
  const Floats power = power_of_two(difference * scale - (shifted - kRounder), shifted);
  sum += power;
  weighted += power * difference;
}

// At most kBlock logits, padded with -inf to whole vectors.
inline void add_block(const float* logits, int64_t num_vectors, RunningSums& sums) {
  const auto vector = [logits](int64_t i) { return load(logits + i * kLanes); };
  Floats maxima[4] = {vector(0), vector(0), vector(0), vector(0)};
  for (int64_t i = 0; i + 4 <= num_vectors; i += 4) {
    for (int64_t k = 0; k < 4; ++k) maxima[k] = at_least(vector(i + k), maxima[k]);
  }
  for (int64_t i = num_vectors / 4 * 4; i < num_vectors; ++i) maxima[0] = at_least(vector(i), maxima[0]);
  for (int64_t k = 1; k < 4; ++k) maxima[0] = at_least(maxima[k], maxima[0]);
  sums.raise(max_of(maxima[0]));
  // Nothing above -inf so far: the differences would be NaN. 0 + NaN still shows a NaN among the values.
  if (sums.largest == -kInfinity) {
    for (int64_t i = 0; i < num_vectors; ++i) sums.sum += sum_of(vector(i) == vector(i) ? broadcast(0.0f) : vector(i));
    return;
  }
  const float largest = sums.largest;
  const float scale = static_cast<float>(sums.inv_temperature) * kLog2E;
  // Beyond it, -inf included, the power is 0 and any finite number will do in place of the difference.
  const float lowest = kLowestPower / scale;
  Floats sum[4] = {};
  Floats weighted[4] = {};
  for (int64_t i = 0; i + 4 <= num_vectors; i += 4) {
    for (int64_t k = 0; k < 4; ++k)
      accumulate(at_least(broadcast(lowest), vector(i + k) - largest), scale, sum[k], weighted[k]);
  }
  for (int64_t i = num_vectors / 4 * 4; i < num_vectors; ++i) {
    accumulate(at_least(broadcast(lowest), vector(i) - largest), scale, sum[0], weighted[0]);
  }
  sums.sum += sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
  sums.weighted += sum_of((weighted[0] + weighted[1]) + (weighted[2] + weighted[3])) * sums.inv_temperature;
}

// `count` logits as float32, padded with -inf to whole vectors: in place where they are that already, else in the
// buffer.
template <typename T>
inline const float* widened(const T* logits, int64_t count, float* buffer) {
  const int64_t whole = count / kLanes;
  const int64_t rest = count - whole * kLanes;
  if constexpr (std::is_same_v<T, float>) {
    if (rest == 0) return logits;
  }
  for (int64_t i = 0; i < whole; ++i) store(load(logits + i * kLanes), buffer + i * kLanes);
  if (rest > 0) store(load_tail(logits + whole * kLanes, rest), buffer + whole * kLanes);
  return buffer;
}

template <typename T>
RowStatistics statistics(const void* row, int64_t vocab_size, float inv_temperature) {
  const T* logits = static_cast<const T*>(row);
  float buffer[kBlock];
  RunningSums sums{inv_temperature};
  for (int64_t first = 0; first < vocab_size; first += kBlock) {
    const int64_t count = vocab_size - first < kBlock ? vocab_size - first : kBlock;
    add_block(widened(logits + first, count, buffer), (count + kLanes - 1) / kLanes, sums);
  }
  // Only -inf: the distribution is not defined, as the NaN of torch's log_softmax says.
  if (sums.sum == 0) sums.sum = __builtin_nan("");
  const double log_sum = __builtin_log(sums.sum);
  return {sums.largest, log_sum, log_sum - sums.weighted / sums.sum};
}

// The description of a gradient as its loop uses it; probabilities are powers of two.
struct GradientFactors {
  explicit GradientFactors(const RowGradient& g)
      : largest(static_cast<float>(g.statistics.largest)),
        scale(g.inv_temperature * kLog2E),
        log2_sum(static_cast<float>(g.statistics.log_sum) * kLog2E),
        slope(static_cast<float>(-g.slope * g.inv_temperature)),
        entropy(static_cast<float>(g.statistics.entropy)),
        entropy_slope(static_cast<float>(g.entropy_slope * g.inv_temperature)) {}

  float largest, scale, log2_sum, slope, entropy, entropy_slope;
};

template <bool kWithEntropy>
inline Floats gradient_of(Floats logits, const GradientFactors& g) {
  const Floats exponent = at_least(broadcast(kLowestPower), (logits - g.largest) * g.scale - g.log2_sum);
  const Floats shifted = exponent + kRounder;
  const Floats power = power_of_two(exponent - (shifted - kRounder), shifted);
  const Floats share = power * g.slope;
  if constexpr (!kWithEntropy) return share;
  return share - power * (exponent * kLn2 + g.entropy) * g.entropy_slope;
}

template <typename T, bool kWithEntropy>
void write_gradient(const T* logits, const RowGradient& description, T* out) {
  const GradientFactors g(description);
  const int64_t whole = description.vocab_size / kLanes;
  for (int64_t i = 0; i < whole; ++i) {
    store(gradient_of<kWithEntropy>(load(logits + i * kLanes), g), out + i * kLanes);
  }
  const int64_t rest = description.vocab_size - whole * kLanes;
  if (rest == 0) return;
  const Floats last = load_tail(logits + whole * kLanes, rest);
  store_head(gradient_of<kWithEntropy>(last, g), rest, out + whole * kLanes);
}

template <typename T>
void gradient(const void* row, const RowGradient& g, void* out) {
  const T* logits = static_cast<const T*>(row);
  T* grad = static_cast<T*>(out);
  const double logit = load_tail(logits + g.token, 1)[0];
  const double log_prob = (logit - g.statistics.largest) * g.inv_temperature - g.statistics.log_sum;
  if (g.entropy_slope == 0) {
    write_gradient<T, false>(logits, g, grad);
  } else {
    write_gradient<T, true>(logits, g, grad);
  }
  double token = -g.slope * __builtin_expm1(log_prob);  // 1 - p without cancellation
  if (g.entropy_slope != 0 && log_prob > -__builtin_inf()) {
    token -= g.entropy_slope * __builtin_exp(log_prob) * (log_prob + g.statistics.entropy);
  }
  store_head(broadcast(static_cast<float>(token * g.inv_temperature)), 1, grad + g.token);
}

}  // namespace

const RowMath ZOOMZERO_TABLE(kRowMath) = {{statistics<float>, statistics<BFloat16Bits>, statistics<Float16Bits>},
                                          {gradient<float>, gradient<BFloat16Bits>, gradient<Float16Bits>}};

}  // namespace zoomzero
