// Row kernels of frame_resample with AVX-512 (F, BW, VL, DQ): the integers and roundings of the plain version.
#include "frame_resample/rows.h"

#ifdef __x86_64__
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#define ZOOMZERO_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))

namespace zoomzero {
namespace {

// One 16-byte load of each of the four rows, a row a 128-bit lane.
ZOOMZERO_AVX512 inline __m512i load_rows(const uint8_t* const* source, int64_t offset) {
  const auto row = [source, offset](int r) ZOOMZERO_AVX512 {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(source[r] + offset));
  };
  __m512i rows = _mm512_castsi128_si512(row(0));
  rows = _mm512_inserti32x4(rows, row(1), 1);
  rows = _mm512_inserti32x4(rows, row(2), 2);
  return _mm512_inserti32x4(rows, row(3), 3);
}

// Four rows at once. Of 4 pixels (12 bytes) a lane, one shuffle makes the int16 pairs (R0 R1)(G0 G1)(B0 B1) and one
// those of pixels 2 and 3; multiply-add with a broadcast pair of weights sums each channel in its own 32-bit element.
ZOOMZERO_AVX512 void horizontal(const uint8_t* const* source, const AxisView& axis, int32_t out_w,
                                uint8_t* const* out) {
  const __m512i first_pair =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const __m512i second_pair =
      _mm512_broadcast_i32x4(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  const __m512i half = _mm512_set1_epi32(rounding(axis.precision));
  const __m128i shift = _mm_cvtsi32_si128(axis.precision);
  for (int32_t x = 0; x < out_w; ++x) {
    const int16_t* weights = axis.weights + int64_t{x} * axis.taps;
    const int64_t offset = int64_t{axis.starts[x]} * kChannels;
    __m512i even = half, odd = _mm512_setzero_si512();
    for (int32_t k = 0; k < axis.sizes[x]; k += 4) {
      const __m512i pixels = load_rows(source, offset + int64_t{k} * kChannels);
      const __m512i w01 = _mm512_set1_epi32(weight_pair(weights + k));
      const __m512i w23 = _mm512_set1_epi32(weight_pair(weights + k + 2));
      even = _mm512_add_epi32(even, _mm512_madd_epi16(_mm512_shuffle_epi8(pixels, first_pair), w01));
      odd = _mm512_add_epi32(odd, _mm512_madd_epi16(_mm512_shuffle_epi8(pixels, second_pair), w23));
    }
    const __m512i sums = _mm512_sra_epi32(_mm512_add_epi32(even, odd), shift);
    const __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(sums, _mm512_setzero_si512()));
    // The fourth byte is overwritten by the next pixel, the last one lies in the slack.
    const int64_t at = int64_t{x} * kChannels;
    _mm_storeu_si32(out[0] + at, bytes);
    _mm_storeu_si32(out[1] + at, _mm_shuffle_epi32(bytes, 1));
    _mm_storeu_si32(out[2] + at, _mm_shuffle_epi32(bytes, 2));
    _mm_storeu_si32(out[3] + at, _mm_shuffle_epi32(bytes, 3));
  }
}

// 32 bytes of two rows at once: interleaved and widened to int16 pairs, one multiply-add takes both rows. May write up
// to 31 bytes past num_bytes, into the slack.
ZOOMZERO_AVX512 void vertical(const uint8_t* const* rows, const int16_t* weights, int32_t num_rows, int32_t precision,
                              uint8_t* out, int64_t num_bytes) {
  const __m512i half = _mm512_set1_epi32(rounding(precision));
  const __m128i shift = _mm_cvtsi32_si128(precision);
  const __m512i zero = _mm512_setzero_si512();
  for (int64_t j = 0; j < num_bytes; j += 32) {
    __m512i low = half, high = half;  // bytes 0-7 and 16-23, bytes 8-15 and 24-31
    for (int32_t k = 0; k < num_rows; k += 2) {
      const bool paired = k + 1 < num_rows;
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[k] + j));
      const __m256i b =
          paired ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[k + 1] + j)) : _mm256_setzero_si256();
      const __m512i w = _mm512_set1_epi32(paired ? weight_pair(weights + k) : static_cast<uint16_t>(weights[k]));
      low = _mm512_add_epi32(low, _mm512_madd_epi16(_mm512_cvtepu8_epi16(_mm256_unpacklo_epi8(a, b)), w));
      high = _mm512_add_epi32(high, _mm512_madd_epi16(_mm512_cvtepu8_epi16(_mm256_unpackhi_epi8(a, b)), w));
    }
    const __m128i first = _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_sra_epi32(low, shift), zero));
    const __m128i second = _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_sra_epi32(high, shift), zero));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + j), _mm_unpacklo_epi64(first, second));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + j + 16), _mm_unpackhi_epi64(first, second));
  }
}

// Channel c of 16 RGB pixels (48 bytes in three registers): one shuffle a register, zeros elsewhere.
struct ChannelShuffle {
  __m128i part[3];
};

ZOOMZERO_AVX512 inline ChannelShuffle channel_shuffle(int c) {
  alignas(16) int8_t index[3][16];
  for (int part = 0; part < 3; ++part) {
    for (int x = 0; x < 16; ++x) {
      const int byte = x * kChannels + c - part * 16;
      index[part][x] = static_cast<int8_t>(byte >= 0 && byte < 16 ? byte : -1);
    }
  }
  ChannelShuffle shuffle;
  for (int part = 0; part < 3; ++part)
    shuffle.part[part] = _mm_load_si128(reinterpret_cast<const __m128i*>(index[part]));
  return shuffle;
}

ZOOMZERO_AVX512 inline void store16(float* out, __m512 values, __mmask16 mask) {
  _mm512_mask_storeu_ps(out, mask, values);
}

ZOOMZERO_AVX512 inline void store16(BFloat16Bits* out, __m512 values, __mmask16 mask) {
  // Round to nearest even on the bits; the values are finite.
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i lowest = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), lowest);
  _mm256_mask_storeu_epi16(out, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

ZOOMZERO_AVX512 inline void store16(Float16Bits* out, __m512 values, __mmask16 mask) {
  _mm256_mask_storeu_epi16(out, mask, _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

template <typename T>
ZOOMZERO_AVX512 void normalise(const uint8_t* rgb, const PixelBlock& block, const FrameResampleParams& p, void* out) {
  ChannelShuffle shuffles[kChannels];
  __m512 scale[kChannels], shift[kChannels];
  for (int c = 0; c < kChannels; ++c) {
    shuffles[c] = channel_shuffle(c);
    scale[c] = _mm512_set1_ps(p.scale[c]);
    shift[c] = _mm512_set1_ps(p.shift[c]);
  }
  for (int64_t y = 0; y < block.rows; ++y) {
    for (int64_t x = 0; x < block.columns; x += 16) {
      const uint8_t* pixels = rgb + y * block.row_bytes + x * kChannels;
      const int64_t left = block.columns - x;
      const __mmask16 mask = left >= 16 ? __mmask16{0xFFFF} : static_cast<__mmask16>((1u << left) - 1);
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels));
      const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels + 16));
      const __m128i d = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels + 32));
      for (int c = 0; c < kChannels; ++c) {
        const __m128i* part = shuffles[c].part;
        const __m128i bytes = _mm_or_si128(_mm_or_si128(_mm_shuffle_epi8(a, part[0]), _mm_shuffle_epi8(b, part[1])),
                                           _mm_shuffle_epi8(d, part[2]));
        const __m512 values = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
        T* to = static_cast<T*>(out) + c * block.plane_stride + y * block.columns + x;
        store16(to, _mm512_fmadd_ps(values, scale[c], shift[c]), mask);
      }
    }
  }
}

}  // namespace

const RowKernels kRowKernelsAvx512 = {
    4, horizontal, vertical, {normalise<float>, normalise<BFloat16Bits>, normalise<Float16Bits>}};

}  // namespace zoomzero
#endif
