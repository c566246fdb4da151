// token_resample: exact-area averaging of visual tokens to a grid of another size, slice by slice. Launchers.
#pragma once

#include <string>

#include "cuda_kernels/op.h"
#include "token_resample/params.h"

namespace zoomzero {

void token_resample_cpu(const TokenResampleParams& p, int32_t num_threads);

// The kernel for elements of `type`, which its threads take 16 bytes or one at a time.
std::string token_resample_kernel_name(ElementType type, bool vectors);

// The launch of the CUDA kernel; all pointers in device memory.
KernelLaunch token_resample_launch(const TokenResampleParams& p);

}  // namespace zoomzero
