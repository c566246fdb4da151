// frame_resample: uint8 video frames -> normalised model inputs in one pass. Parameters and launchers.
#pragma once

#include <string>

#include "cuda_kernels/op.h"
#include "frame_resample/bicubic_axis.h"
#include "frame_resample/params.h"

namespace zoomzero {

void frame_resample_cpu(const FrameResampleParams& p, int32_t num_threads);

// The taps multiple that `horizontal` must be built with for the CPU; everything else takes 1.
int32_t frame_resample_cpu_taps_multiple();

// Cuts the work for a GPU of num_processors; shared_bytes is 0 where the downsampling ratio is too large for a block's
// memory.
FrameResampleLaunch plan_frame_resample_cuda(const FrameResampleParams& p, int32_t num_processors);

// The kernel for outputs of `type`.
std::string frame_resample_kernel_name(ElementType type);

// The launch of the CUDA kernel on a GPU of num_processors; all pointers in device memory. Throws std::invalid_argument
// where the downsampling ratio is too large for a block's memory, or the frames are too many for a grid.
KernelLaunch frame_resample_launch(const FrameResampleParams& p, int32_t num_processors);

}  // namespace zoomzero
