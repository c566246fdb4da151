// token_resample: exact-area averaging of visual tokens to a grid of another size, slice by slice. Launchers.
#pragma once

#include "token_resample/params.h"

#if defined(ZOOMZERO_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace zoomzero {

void token_resample_cpu(const TokenResampleParams& p, int32_t num_threads);

// How the CUDA kernel is launched: the threads of a block, and whether they take 16 bytes at a time.
struct TokenResampleLaunch {
  int64_t blocks;
  int32_t threads;
  bool vectors;
};

TokenResampleLaunch plan_token_resample_cuda(const TokenResampleParams& p);

#if defined(ZOOMZERO_WITH_CUDA) || defined(__CUDACC__)
// All pointers in device memory. Launches on `stream` and returns the launch's status; nothing waits.
cudaError_t token_resample_cuda(const TokenResampleParams& p, cudaStream_t stream);
#endif

}  // namespace zoomzero
