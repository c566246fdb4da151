// frame_resample: uint8 video frames -> normalised model inputs in one pass. Parameters and launchers.
#pragma once

#include <cstdint>

#include "common/element_type.h"
#include "frame_resample/bicubic_axis.h"

#if defined(ZOOMZERO_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

#ifdef __CUDACC__
#define ZOOMZERO_HOST_DEVICE __host__ __device__
#else
#define ZOOMZERO_HOST_DEVICE
#endif

namespace zoomzero {

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
ZOOMZERO_HOST_DEVICE inline OutputRun output_run(const FrameResampleParams& p, int64_t slot, int64_t y, int64_t x) {
  if (p.patches.patch_size == 0) {
    const int64_t plane = int64_t{p.out_h} * p.out_w;
    return {slot * kChannels * plane + y * p.out_w + x, plane};
  }
  const int64_t ps = p.patches.patch_size, m = p.patches.merge_size, tp = p.patches.temporal_patch_size;
  const int64_t grid_h = p.out_h / ps, grid_w = p.out_w / ps;
  const int64_t gy = y / ps, gx = x / ps;
  const int64_t row = (((slot / tp) * (grid_h / m) + gy / m) * (grid_w / m) + gx / m) * m * m + (gy % m) * m + gx % m;
  const int64_t in_row = ((slot % tp) * ps + y % ps) * ps;
  return {row * kChannels * tp * ps * ps + in_row, tp * ps * ps};
}

void frame_resample_cpu(const FrameResampleParams& p, int32_t num_threads);

// The taps multiple that `horizontal` must be built with for the CPU; everything else takes 1.
int32_t frame_resample_cpu_taps_multiple();

// How the CUDA kernel cuts the work: a block makes `block_rows` output rows of one strip of `strip_w` columns of one
// frame, `band_rows` at a time.
struct FrameResampleLaunch {
  int32_t strip_w;  // columns of a strip: a multiple of the patch side, or any in the planar layout
  int32_t num_strips;
  int32_t band_rows;   // rows made at once: divides the patch side
  int32_t block_rows;  // rows a block makes in all: a multiple of the patch side
  int32_t num_blocks_y;
  int32_t stage_rows;   // source rows loaded at once, a multiple of kHorizontalRows
  int32_t stage_pitch;  // bytes of a staged row, a multiple of 16
  int32_t ring_rows;    // capacity for horizontally resized rows
  int32_t shared_bytes;
};

// Cuts the work for a GPU of num_processors; shared_bytes is 0 where the downsampling ratio is too large for a block's
// memory.
FrameResampleLaunch plan_frame_resample_cuda(const FrameResampleParams& p, int32_t num_processors);

#if defined(ZOOMZERO_WITH_CUDA) || defined(__CUDACC__)
// All pointers in device memory. Launches on `stream` and returns the launch's status; nothing waits.
cudaError_t frame_resample_cuda(const FrameResampleParams& p, const FrameResampleLaunch& launch, cudaStream_t stream);
#endif

}  // namespace zoomzero
