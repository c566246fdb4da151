// The CPU loops of token_resample, compiled once per instruction set: see Note [Instruction sets] in cpu_capability.h.
//
// Problem: every output token is a weighted sum of the few input tokens that its cell covers.
// Parallelisation: the caller splits the rows of all output grids among threads; both directions gather, so nothing is
// shared and the result does not depend on the split. Memory traffic: where the ratio is whole, every input and output
// element once; a block of kBlock channels is summed in the first-level cache.
#include <algorithm>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "common/cpu_capability.h"
#include "common/half_types.h"
#include "token_resample/rows.h"

namespace zoomzero {
namespace {

constexpr int64_t kBlock = 1024;

template <typename T>
inline void add_scaled(const T* in, int64_t count, float weight, float* sums) {
  for (int64_t d = 0; d < count; ++d) sums[d] += weight * to_float(in[d]);
}

template <>
inline void add_scaled(const BFloat16Bits* in, int64_t count, float weight, float* sums) {
  for (int64_t d = 0; d < count; ++d) sums[d] += weight * std::bit_cast<float>(uint32_t{in[d].bits} << 16);
}

// `rounded`: room for the converted elements; float32 needs none.
inline const void* to_elements(const float* sums, int64_t, float*) { return sums; }

template <typename T>
inline const void* to_elements(const float* sums, int64_t count, T* rounded) {
  for (int64_t d = 0; d < count; ++d) rounded[d] = from_float<T>(sums[d]);
  return rounded;
}

inline const void* to_elements(const float* sums, int64_t count, BFloat16Bits* rounded) {
  for (int64_t d = 0; d < count; ++d) {
    const uint32_t bits = std::bit_cast<uint32_t>(sums[d]);
    const uint32_t nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    rounded[d].bits = static_cast<uint16_t>(sums[d] != sums[d] ? 0x7FC0 : nearest);
  }
  return rounded;
}

#ifdef __F16C__
template <>
inline void add_scaled(const Float16Bits* in, int64_t count, float weight, float* sums) {
  int64_t d = 0;
  for (; d + 8 <= count; d += 8) {
    const __m256 values = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + d)));
    _mm256_storeu_ps(sums + d, _mm256_add_ps(_mm256_loadu_ps(sums + d), _mm256_mul_ps(_mm256_set1_ps(weight), values)));
  }
  for (; d < count; ++d) sums[d] += weight * to_float(in[d]);
}

inline const void* to_elements(const float* sums, int64_t count, Float16Bits* rounded) {
  int64_t d = 0;
  for (; d + 8 <= count; d += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(sums + d), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rounded + d), halves);
  }
  for (; d < count; ++d) rounded[d] = from_float<Float16Bits>(sums[d]);
  return rounded;
}
#endif

// One row of output cells of a slice.
template <typename T>
void resample_row(const TokenResampleParams& p, const TokenSlice& slice, int32_t row, CopyOut copy_out, bool stream) {
  alignas(64) float sums[kBlock];
  alignas(64) T rounded[kBlock];
  const auto in_h = static_cast<int32_t>(slice.in_h), in_w = static_cast<int32_t>(slice.in_w);
  const auto out_h = static_cast<int32_t>(slice.out_h), out_w = static_cast<int32_t>(slice.out_w);
  const float unit_h = 1.0f / static_cast<float>(p.backward ? out_h : in_h);
  const float unit_w = 1.0f / static_cast<float>(p.backward ? out_w : in_w);
  const CellRange ys = covered_cells(row, out_h, in_h);
  for (int32_t column = 0; column < out_w; ++column) {
    const CellRange xs = covered_cells(column, out_w, in_w);
    T* out = static_cast<T*>(p.out) + (slice.first_out + row * slice.out_w + column) * p.dim;
    for (int64_t first = 0; first < p.dim; first += kBlock) {
      const int64_t count = std::min(kBlock, p.dim - first);
      std::fill(sums, sums + count, 0.0f);
      for (int32_t y = ys.first; y < ys.end; ++y) {
        const float weight_y = static_cast<float>(overlap(row, out_h, y, in_h)) * unit_h;
        for (int32_t x = xs.first; x < xs.end; ++x) {
          const float weight_x = static_cast<float>(overlap(column, out_w, x, in_w)) * unit_w;
          const T* in = static_cast<const T*>(p.in) + (slice.first_in + y * slice.in_w + x) * p.dim + first;
          add_scaled(in, count, weight_y * weight_x, sums);
        }
      }
      copy_out(out + first, to_elements(sums, count, rounded), count * sizeof(T), stream);
    }
  }
}

template <typename T>
void resample(const TokenResampleParams& p, CopyOut copy_out, int64_t begin_item, int64_t end_item) {
  const bool stream = p.num_out * p.dim * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
  const TokenSlice* slice =
      std::upper_bound(p.slices, p.slices + p.num_slices, begin_item,
                       [](int64_t item, const TokenSlice& candidate) { return item < candidate.first_out_grid_row; });
  --slice;
  for (int64_t item = begin_item; item < end_item; ++item) {
    while (item >= slice->first_out_grid_row + slice->out_h) ++slice;
    resample_row<T>(p, *slice, static_cast<int32_t>(item - slice->first_out_grid_row), copy_out, stream);
  }
}

}  // namespace

const TokenRows ZOOMZERO_TABLE(kTokenRows) = {{resample<float>, resample<BFloat16Bits>, resample<Float16Bits>}};

}  // namespace zoomzero
