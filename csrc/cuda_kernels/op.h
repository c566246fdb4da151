// Launches of the CUDA kernels of the ops. A launch is worked out on the host, by name and bytes, so that it is the
// same whether nvcc compiled the kernel into this module or NVRTC compiles its source where it runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/element_type.h"

#if defined(ZOOMZERO_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace zoomzero {

struct KernelLaunch {
  std::string kernel;    // C++ name with template arguments, of a kernel in csrc/<op>/cuda.cu
  uint32_t num_blocks;   // the grid has one dimension
  uint32_t num_threads;  // of a block
  uint32_t shared_bytes;
  std::vector<std::string> parameters;  // the bytes of each
};

template <typename T>
std::string bytes_of_object(const T& object) {
  return {reinterpret_cast<const char*>(&object), sizeof(object)};
}

// An element's type as a template argument of a kernel.
inline const char* device_name(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return "zoomzero::ElementType::kFloat32";
    case ElementType::kBFloat16:
      return "zoomzero::ElementType::kBFloat16";
    case ElementType::kFloat16:
      return "zoomzero::ElementType::kFloat16";
  }
  return "";
}

#if defined(ZOOMZERO_WITH_CUDA) || defined(__CUDACC__)
// A kernel that nvcc compiled, under the name that launches give it.
struct CudaKernel {
  std::string name;
  const void* function;
};

// Launches on the current device; returns the launch's status, nothing waits.
cudaError_t launch_cuda_kernel(const KernelLaunch& launch, cudaStream_t stream);

// The names of all kernels of this build.
std::vector<std::string> cuda_kernel_names();

// All kernels of an op; defined in csrc/<op>/cuda.cu.
std::vector<CudaKernel> frame_resample_kernels();
std::vector<CudaKernel> token_resample_kernels();
#endif

}  // namespace zoomzero
