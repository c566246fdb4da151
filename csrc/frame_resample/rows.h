// Row kernels of frame_resample on the CPU, one implementation an instruction set, chosen once at run time.
#pragma once

#include <cstdint>

#include "common/half_types.h"
#include "frame_resample/bicubic_axis.h"
#include "frame_resample/op.h"

namespace zoomzero {

// Source rows of the horizontal pass may be read, and rows in scratch memory read and written, this many bytes past
// their end.
constexpr int64_t kRowSlack = 64;
// Source rows that the horizontal pass takes at once, so that the weights are loaded once for all of them.
constexpr int32_t kRowGroup = 4;

// A block of interleaved RGB pixels on its way to one plane a channel.
struct PixelBlock {
  int64_t rows;
  int64_t columns;
  int64_t row_bytes;     // from one row of pixels to the next
  int64_t plane_stride;  // elements from one channel's [rows, columns] plane to the next
};

// rgb -> normalised elements, planes [3][rows, columns] at `out`. May write kRowSlack bytes past the end.
using Normalise = void (*)(const uint8_t* rgb, const PixelBlock& block, const FrameResampleParams& p, void* out);

struct RowKernels {
  // The weight rows of the horizontal axis must be padded to a multiple of this.
  int32_t taps_multiple;
  // source[r]: interleaved RGB [in_w, 3], with axis.taps pixels readable from every start; out[r]: [out_w, 3]; r <
  // kRowGroup.
  void (*horizontal)(const uint8_t* const* source, const AxisView& axis, int32_t out_w, uint8_t* const* out);
  // out[j] = sum_k weights[k] rows[k][j] for j < num_bytes, rounded and clamped.
  void (*vertical)(const uint8_t* const* rows, const int16_t* weights, int32_t num_rows, int32_t precision,
                   uint8_t* out, int64_t num_bytes);
  Normalise normalise[kNumElementTypes];  // by type of element
};

// Half of the unit that a shift by `precision` bits leaves, for rounding.
inline int32_t rounding(int32_t precision) { return precision > 0 ? 1 << (precision - 1) : 0; }

// A pair of neighbouring int16 weights as the 32-bit unit that a broadcast repeats.
inline int32_t weight_pair(const int16_t* weights) {
  int32_t pair;
  __builtin_memcpy(&pair, weights, sizeof(pair));
  return pair;
}

extern const RowKernels kRowKernelsDefault, kRowKernelsAvx2, kRowKernelsAvx512;

}  // namespace zoomzero
