// What the kernels of frame_resample are handed. Includes nothing but integer types, so that device code may include
// it.
#pragma once

#include <cstdint>

#include "common/element_type.h"

#ifdef __CUDACC__
#define ZOOMZERO_HOST_DEVICE __host__ __device__
#else
#define ZOOMZERO_HOST_DEVICE
#endif

namespace zoomzero {

// One axis as the kernels read it: output i = sum_k weights[i * taps + k] * input[starts[i] + k], k < sizes[i].
struct AxisView {
  const int32_t* starts;   // [out_size]
  const int32_t* sizes;    // [out_size], at most taps
  const int16_t* weights;  // [out_size, taps], zero from sizes[i] on
  int32_t taps;
  int32_t precision;  // weights are multiples of 2^-precision
};

constexpr int32_t kChannels = 3;

// Output layout. patch_size == 0 means planes [n, 3, out_h, out_w]; otherwise Qwen-VL patch rows, each one
// [3, temporal_patch_size, patch_size, patch_size], rows ordered (t, out_h/(ps*m), out_w/(ps*m), m, m).
struct PatchLayout {
  int32_t patch_size;
  int32_t merge_size;
  int32_t temporal_patch_size;
};

struct FrameResampleParams {
  const uint8_t* frames;  // [num_source_frames, in_h, in_w, 3], strides in bytes below
  int64_t stride_frame;
  int64_t stride_row;
  int64_t stride_pixel;
  int64_t stride_channel;
  int64_t num_source_frames;
  const int64_t* frame_indices;  // [num_frames] or null for 0 .. num_frames - 1
  int64_t num_frames;
  int32_t in_h, in_w, out_h, out_w;
  AxisView horizontal;     // in_w -> out_w
  AxisView vertical;       // in_h -> out_h
  float scale[kChannels];  // output = value * scale + shift, one rounding (fused multiply-add)
  float shift[kChannels];
  PatchLayout patches;
  ElementType type;
  void* output;  // contiguous
};

// Pixels of one output row that lie next to each other in the output, and the first of a channel's elements.
struct OutputRun {
  int64_t first;           // element offset of channel 0
  int64_t channel_stride;  // elements from channel c to c + 1
};

// The run that holds pixel (y, x) of frame slot `slot`; x must start a run (a patch, or 0 in the planar layout).
ZOOMZERO_HOST_DEVICE inline OutputRun output_run(const FrameResampleParams& p, int64_t slot, int32_t y, int32_t x) {
  if (p.patches.patch_size == 0) {
    const int64_t plane = int64_t{p.out_h} * p.out_w;
    return {slot * kChannels * plane + int64_t{y} * p.out_w + x, plane};
  }
  const int32_t ps = p.patches.patch_size, m = p.patches.merge_size, tp = p.patches.temporal_patch_size;
  const int32_t gy = y / ps, gx = x / ps;
  const int64_t cell_row = slot / tp * (p.out_h / ps / m) + gy / m;
  const int64_t row = (cell_row * (p.out_w / ps / m) + gx / m) * m * m + gy % m * m + gx % m;
  const int64_t plane = int64_t{tp} * ps * ps;
  return {row * kChannels * plane + (slot % tp * ps + y % ps) * ps, plane};
}

// The CUDA kernel resizes source rows in groups of kGroupRows from a multiple of it on, a byte each in a 32-bit word,
// and takes as many taps at once: two instructions of two 16-bit weights by two bytes each.
constexpr int32_t kGroupRows = 4;
constexpr int32_t kGroupTaps = 4;
// Bytes of an asynchronous copy.
constexpr int32_t kWordBytes = 16;
// Adjacent columns that a thread of the vertical pass makes.
constexpr int32_t kVectorColumns = 4;

// How a block's threads share a grid of work items: where it is no wider than they are many, each keeps its column and
// goes down by row_step, so that what depends on the column is computed once.
struct ThreadGrid {
  int32_t columns, column_step, row_step;
};

// How the CUDA kernel cuts the work: a block makes `block_rows` output rows of one strip of `strip_w` columns of one
// frame, `band_rows` at a time.
struct FrameResampleLaunch {
  int32_t threads;     // of a block
  int32_t strip_w;     // columns of a strip: a multiple of the patch side, or any in the planar layout
  int32_t ring_pitch;  // strip_w rounded up to whole vectors of kVectorColumns
  int32_t num_strips;
  int32_t band_rows;   // rows made at once: divides the patch side
  int32_t block_rows;  // rows a block makes in all: a multiple of the patch side
  int32_t num_blocks_y;
  int32_t stage_groups;       // groups of kGroupRows source rows copied at once
  int32_t stage_pitch;        // bytes of a staged row, a multiple of 16
  int32_t ring_groups;        // capacity for horizontally resized groups of rows
  int32_t horizontal_groups;  // groups of kGroupTaps taps of an output column, at most
  int32_t vertical_groups;    // groups of kGroupRows source rows that an output row takes from, at most
  int32_t run_pitch;          // bytes of a run of finished values, a multiple of 4
  bool stores_vectors;        // runs are whole vectors of kVectorColumns elements, aligned
  // 16-byte words of staged rows; columns of groups of rows; vectors of columns of output rows; vectors of runs.
  ThreadGrid stage_grid, horizontal_grid, vertical_grid, store_grid;
  // Where a block's arrays begin in its shared memory, and how much it takes.
  int32_t ring_at, band_at, runs_at, places_at, columns_at, horizontal_weights_at, rows_at, vertical_weights_at,
      finished_at;
  int32_t shared_bytes;
};

}  // namespace zoomzero
