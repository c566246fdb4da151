// What bindings of CUDA ops share.
//
// The CUDA runtime is linked statically, so it has a notion of the current device of its own, beside that of torch's
// runtime; both use the driver's one context per device, so streams and memory of torch are valid here.
#pragma once

#ifdef ZOOMZERO_WITH_CUDA
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "common/addresses.h"

namespace zoomzero {

inline void check_cuda(cudaError_t status, const char* op) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": CUDA must take the launch, got " + cudaGetErrorName(status) + " (" +
                           cudaGetErrorString(status) +
                           "); an earlier kernel may have failed, which CUDA_LAUNCH_BLOCKING=1 shows");
}

inline cudaStream_t stream_at(Address stream) { return pointer<CUstream_st>(stream); }

}  // namespace zoomzero
#endif
