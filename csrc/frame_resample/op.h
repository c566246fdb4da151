// frame_resample: uint8 video frames -> normalised model inputs in one pass. Parameters and launchers.
#pragma once

#include "frame_resample/bicubic_axis.h"
#include "frame_resample/params.h"

#if defined(ZOOMZERO_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace zoomzero {

void frame_resample_cpu(const FrameResampleParams& p, int32_t num_threads);

// The taps multiple that `horizontal` must be built with for the CPU; everything else takes 1.
int32_t frame_resample_cpu_taps_multiple();

// Cuts the work for a GPU of num_processors; shared_bytes is 0 where the downsampling ratio is too large for a block's
// memory.
FrameResampleLaunch plan_frame_resample_cuda(const FrameResampleParams& p, int32_t num_processors);

#if defined(ZOOMZERO_WITH_CUDA) || defined(__CUDACC__)
// All pointers in device memory. Launches on `stream` and returns the launch's status; nothing waits.
cudaError_t frame_resample_cuda(const FrameResampleParams& p, const FrameResampleLaunch& launch, cudaStream_t stream);
#endif

}  // namespace zoomzero
