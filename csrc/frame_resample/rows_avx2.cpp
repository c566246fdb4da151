// Row kernels of frame_resample with AVX2, FMA and F16C: the integers and roundings of the plain version.
#include "frame_resample/rows.h"

#ifdef __x86_64__
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#define ZOOMZERO_AVX2 __attribute__((target("avx2,fma,f16c")))

namespace zoomzero {
namespace {

// 16 bytes of two rows, a row a 128-bit lane.
ZOOMZERO_AVX2 inline __m256i load_two(const uint8_t* a, const uint8_t* b) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a))),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)), 1);
}

// Four rows at once, two a register. Of 4 pixels (12 bytes) a lane, one shuffle makes the int16 pairs (R0 R1)(G0 G1)(B0
// B1) and one those of pixels 2 and 3; multiply-add with a broadcast pair of weights sums each channel in its own
// 32-bit element.
ZOOMZERO_AVX2 void horizontal(const uint8_t* const* source, const AxisView& axis, int32_t out_w, uint8_t* const* out) {
  const __m256i first_pair =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const __m256i second_pair =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  const __m256i half = _mm256_set1_epi32(rounding(axis.precision));
  const __m128i shift = _mm_cvtsi32_si128(axis.precision);
  for (int32_t x = 0; x < out_w; ++x) {
    const int16_t* weights = axis.weights + int64_t{x} * axis.taps;
    const int64_t offset = int64_t{axis.starts[x]} * kChannels;
    __m256i top = half, bottom = half;  // rows 0 and 1, rows 2 and 3
    for (int32_t k = 0; k < axis.sizes[x]; k += 4) {
      const int64_t at = offset + int64_t{k} * kChannels;
      const __m256i w01 = _mm256_set1_epi32(weight_pair(weights + k));
      const __m256i w23 = _mm256_set1_epi32(weight_pair(weights + k + 2));
      const __m256i upper = load_two(source[0] + at, source[1] + at);
      const __m256i lower = load_two(source[2] + at, source[3] + at);
      top = _mm256_add_epi32(top, _mm256_madd_epi16(_mm256_shuffle_epi8(upper, first_pair), w01));
      bottom = _mm256_add_epi32(bottom, _mm256_madd_epi16(_mm256_shuffle_epi8(lower, first_pair), w01));
      top = _mm256_add_epi32(top, _mm256_madd_epi16(_mm256_shuffle_epi8(upper, second_pair), w23));
      bottom = _mm256_add_epi32(bottom, _mm256_madd_epi16(_mm256_shuffle_epi8(lower, second_pair), w23));
    }
    // Packing clamps: lane 0 becomes rows 0 and 2, lane 1 rows 1 and 3, four bytes each.
    const __m256i words = _mm256_packs_epi32(_mm256_sra_epi32(top, shift), _mm256_sra_epi32(bottom, shift));
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const __m128i even = _mm256_castsi256_si128(bytes), odd = _mm256_extracti128_si256(bytes, 1);
    // The fourth byte is overwritten by the next pixel, the last one lies in the slack.
    const int64_t at = int64_t{x} * kChannels;
    _mm_storeu_si32(out[0] + at, even);
    _mm_storeu_si32(out[1] + at, odd);
    _mm_storeu_si32(out[2] + at, _mm_shuffle_epi32(even, 1));
    _mm_storeu_si32(out[3] + at, _mm_shuffle_epi32(odd, 1));
  }
}

// 16 bytes of two rows at once: interleaved and widened to int16 pairs, one multiply-add takes both rows. May write up
// to 15 bytes past num_bytes, into the slack.
ZOOMZERO_AVX2 void vertical(const uint8_t* const* rows, const int16_t* weights, int32_t num_rows, int32_t precision,
                            uint8_t* out, int64_t num_bytes) {
  const __m256i half = _mm256_set1_epi32(rounding(precision));
  const __m128i shift = _mm_cvtsi32_si128(precision);
  for (int64_t j = 0; j < num_bytes; j += 16) {
    __m256i low = half, high = half;
    for (int32_t k = 0; k < num_rows; k += 2) {
      const bool paired = k + 1 < num_rows;
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[k] + j));
      const __m128i b =
          paired ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[k + 1] + j)) : _mm_setzero_si128();
      const __m256i w = _mm256_set1_epi32(paired ? weight_pair(weights + k) : static_cast<uint16_t>(weights[k]));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)), w));
      high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b)), w));
    }
    // Packing works within 128-bit lanes: the permutation puts bytes 0-7 before 8-15.
    const __m256i words = _mm256_permute4x64_epi64(
        _mm256_packs_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift)), _MM_SHUFFLE(3, 1, 2, 0));
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + j), bytes);
  }
}

// Channel c of 8 RGB pixels (24 bytes): one shuffle of bytes 0-15 and one of bytes 8-23.
ZOOMZERO_AVX2 inline void channel_shuffle(int c, __m128i* first, __m128i* second) {
  alignas(16) int8_t index[2][16];
  for (int x = 0; x < 16; ++x) {
    const int byte = x * kChannels + c;
    index[0][x] = static_cast<int8_t>(x < 8 && byte < 16 ? byte : -1);
    index[1][x] = static_cast<int8_t>(x < 8 && byte >= 16 ? byte - 8 : -1);
  }
  *first = _mm_load_si128(reinterpret_cast<const __m128i*>(index[0]));
  *second = _mm_load_si128(reinterpret_cast<const __m128i*>(index[1]));
}

ZOOMZERO_AVX2 inline void store8(float* out, __m256 values) { _mm256_storeu_ps(out, values); }

ZOOMZERO_AVX2 inline void store8(BFloat16Bits* out, __m256 values) {
  // Round to nearest even on the bits; the values are finite.
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i lowest = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), lowest), 16);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), words);
}

ZOOMZERO_AVX2 inline void store8(Float16Bits* out, __m256 values) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                   _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

template <typename T>
ZOOMZERO_AVX2 void normalise(const uint8_t* rgb, const PixelBlock& block, const FrameResampleParams& p, void* out) {
  __m128i first[kChannels], second[kChannels];
  __m256 scale[kChannels], shift[kChannels];
  for (int c = 0; c < kChannels; ++c) {
    channel_shuffle(c, &first[c], &second[c]);
    scale[c] = _mm256_set1_ps(p.scale[c]);
    shift[c] = _mm256_set1_ps(p.shift[c]);
  }
  for (int64_t y = 0; y < block.rows; ++y) {
    for (int64_t x = 0; x < block.columns; x += 8) {
      const uint8_t* pixels = rgb + y * block.row_bytes + x * kChannels;
      const int64_t count = std::min<int64_t>(8, block.columns - x);
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels));
      const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels + 8));
      for (int c = 0; c < kChannels; ++c) {
        const __m128i bytes = _mm_or_si128(_mm_shuffle_epi8(a, first[c]), _mm_shuffle_epi8(b, second[c]));
        const __m256 values = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
        const __m256 normalised = _mm256_fmadd_ps(values, scale[c], shift[c]);
        T* to = static_cast<T*>(out) + c * block.plane_stride + y * block.columns + x;
        if (count == 8) {
          store8(to, normalised);
        } else {
          T last[8];
          store8(last, normalised);
          std::memcpy(to, last, count * sizeof(T));
        }
      }
    }
  }
}

}  // namespace

const RowKernels kRowKernelsAvx2 = {
    4, horizontal, vertical, {normalise<float>, normalise<BFloat16Bits>, normalise<Float16Bits>}};

}  // namespace zoomzero
#endif
