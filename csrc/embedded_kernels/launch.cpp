#include <mutex>
#include <vector>

#include "embedded_kernels/op.h"

namespace zoomzero {
namespace {

// Handles by place in embedded_kernels(), nullptr until the first launch. They live until the process ends: unloading
// them while the driver shuts down would fail.
struct LoadedKernels {
  std::mutex mutex;
  std::vector<cudaKernel_t> handles = std::vector<cudaKernel_t>(embedded_kernels().size());
};

cudaError_t load(const EmbeddedKernel& kernel, cudaKernel_t& handle) {
  static LoadedKernels* const loaded = new LoadedKernels;
  const std::lock_guard<std::mutex> lock(loaded->mutex);
  cudaKernel_t& known = loaded->handles[static_cast<size_t>(&kernel - embedded_kernels().data())];
  if (known == nullptr) {
    cudaLibrary_t library = nullptr;
    cudaError_t status = cudaLibraryLoadData(&library, kernel.image, nullptr, nullptr, 0, nullptr, nullptr, 0);
    if (status != cudaSuccess) return status;
    status = cudaLibraryGetKernel(&known, library, kernel.symbol);
    if (status != cudaSuccess) return status;
  }
  handle = known;
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_embedded_kernel(const EmbeddedKernel& kernel, uint32_t num_programs, void** parameters,
                                   cudaStream_t stream) {
  cudaKernel_t handle = nullptr;
  const cudaError_t status = load(kernel, handle);
  if (status != cudaSuccess) return status;
  return cudaLaunchKernel(reinterpret_cast<const void*>(handle), dim3(num_programs),
                          dim3(static_cast<uint32_t>(kernel.num_threads)), parameters,
                          static_cast<size_t>(kernel.shared_bytes), stream);
}

}  // namespace zoomzero
