// Row kernels of frame_resample in plain C++: the definition that the vector versions must equal, and what runs
// elsewhere.
#include "frame_resample/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace zoomzero {
namespace {

uint8_t round_and_clamp(int32_t sum, int32_t precision) {
  return static_cast<uint8_t>(std::clamp((sum + rounding(precision)) >> precision, 0, 255));
}

void horizontal(const uint8_t* const* source, const AxisView& axis, int32_t out_w, uint8_t* const* out) {
  for (int32_t r = 0; r < kRowGroup; ++r) {
    for (int32_t x = 0; x < out_w; ++x) {
      const uint8_t* pixels = source[r] + int64_t{axis.starts[x]} * kChannels;
      const int16_t* weights = axis.weights + int64_t{x} * axis.taps;
      int32_t sums[kChannels] = {0, 0, 0};
      for (int32_t k = 0; k < axis.sizes[x]; ++k) {
        for (int32_t c = 0; c < kChannels; ++c) sums[c] += weights[k] * pixels[k * kChannels + c];
      }
      for (int32_t c = 0; c < kChannels; ++c)
        out[r][int64_t{x} * kChannels + c] = round_and_clamp(sums[c], axis.precision);
    }
  }
}

void vertical(const uint8_t* const* rows, const int16_t* weights, int32_t num_rows, int32_t precision, uint8_t* out,
              int64_t num_bytes) {
  constexpr int64_t kBlock = 256;
  for (int64_t first = 0; first < num_bytes; first += kBlock) {
    const int64_t count = std::min(kBlock, num_bytes - first);
    int32_t sums[kBlock] = {};
    for (int32_t k = 0; k < num_rows; ++k) {
      const uint8_t* row = rows[k] + first;
      for (int64_t j = 0; j < count; ++j) sums[j] += weights[k] * row[j];
    }
    for (int64_t j = 0; j < count; ++j) out[first + j] = round_and_clamp(sums[j], precision);
  }
}

template <typename T>
void normalise(const uint8_t* rgb, const PixelBlock& block, const FrameResampleParams& p, void* out) {
  for (int32_t c = 0; c < kChannels; ++c) {
    // Every value a channel can take, so that no fused multiply-add is needed per pixel where the processor may have
    // none.
    T table[256];
    for (int32_t v = 0; v < 256; ++v) table[v] = from_float<T>(std::fma(static_cast<float>(v), p.scale[c], p.shift[c]));
    for (int64_t y = 0; y < block.rows; ++y) {
      const uint8_t* pixels = rgb + y * block.row_bytes + c;
      T* row = static_cast<T*>(out) + c * block.plane_stride + y * block.columns;
      for (int64_t x = 0; x < block.columns; ++x) row[x] = table[pixels[x * kChannels]];
    }
  }
}

}  // namespace

const RowKernels kRowKernelsDefault = {
    1, horizontal, vertical, {normalise<float>, normalise<BFloat16Bits>, normalise<Float16Bits>}};

}  // namespace zoomzero
