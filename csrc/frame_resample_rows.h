// Row kernels of frame_resample on the CPU, one implementation an instruction set, chosen once at run time.
#pragma once

#include <cstdint>

#include "bicubic_axis.h"
#include "frame_resample.h"

namespace zoomzero {

// Source rows of the horizontal pass may be read, and its output rows written, this many bytes past their end.
constexpr int64_t kRowSlack = 64;
// Source rows that the horizontal pass takes at once, so that the weights are loaded once for all of them.
constexpr int32_t kRowGroup = 4;

struct RowKernels {
  const char* name;
  // The weight rows of an axis must be padded to a multiple of this.
  int32_t taps_multiple;
  // source[r]: interleaved RGB [in_w, 3], with axis.taps weights readable from every start; out[r]: [out_w, 3]. r < kRowGroup.
  void (*horizontal)(const uint8_t* const* source, const AxisView& axis, int32_t out_w, uint8_t* const* out);
  // out[j] = sum_k weights[k] rows[k][j] for j < num_bytes, rounded and clamped.
  void (*vertical)(const uint8_t* const* rows, const int16_t* weights, int32_t num_rows, int32_t precision,
                   uint8_t* out, int64_t num_bytes);
  // rgb [count, 3] -> count elements of type p.type at `run` of p.output, for each channel.
  void (*store_run)(const uint8_t* rgb, int64_t count, const FrameResampleParams& p, const OutputRun& run);
};

extern const RowKernels kScalarRows;

}  // namespace zoomzero
