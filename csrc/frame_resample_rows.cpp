// Row kernels of frame_resample in plain C++: the definition that the vector versions must equal, and what runs elsewhere.
#include "frame_resample_rows.h"

#include <algorithm>
#include <cmath>

#include "half_types.h"

namespace zoomzero {
namespace {

uint8_t round_and_clamp(int32_t sum, int32_t precision) {
  return static_cast<uint8_t>(std::clamp((sum + (precision > 0 ? 1 << (precision - 1) : 0)) >> precision, 0, 255));
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
      for (int32_t c = 0; c < kChannels; ++c) out[r][int64_t{x} * kChannels + c] = round_and_clamp(sums[c], axis.precision);
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
void store_as(const uint8_t* rgb, int64_t count, const FrameResampleParams& p, const OutputRun& run) {
  for (int32_t c = 0; c < kChannels; ++c) {
    T* out = static_cast<T*>(p.output) + run.first + c * run.channel_stride;
    for (int64_t x = 0; x < count; ++x) {
      const float value = std::fma(static_cast<float>(rgb[x * kChannels + c]), p.scale[c], p.shift[c]);
      out[x] = from_float<T>(value);
    }
  }
}

void store_run(const uint8_t* rgb, int64_t count, const FrameResampleParams& p, const OutputRun& run) {
  switch (p.type) {
    case PixelType::kFloat32: return store_as<float>(rgb, count, p, run);
    case PixelType::kBFloat16: return store_as<BFloat16Bits>(rgb, count, p, run);
    case PixelType::kFloat16: return store_as<Float16Bits>(rgb, count, p, run);
  }
}

}  // namespace

const RowKernels kScalarRows = {"DEFAULT", 1, horizontal, vertical, store_run};

}  // namespace zoomzero
