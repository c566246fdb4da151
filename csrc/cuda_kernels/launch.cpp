#include <unordered_map>

#include "cuda_kernels/op.h"

namespace zoomzero {
namespace {

// What a block may use of a processor's shared memory without asking.
constexpr uint32_t kFreelySharedBytes = 48 * 1024;

const std::unordered_map<std::string, const void*>& functions() {
  static const std::unordered_map<std::string, const void*> by_name = [] {
    std::unordered_map<std::string, const void*> all;
    for (const auto& kernels : {frame_resample_kernels(), token_resample_kernels()}) {
      for (const CudaKernel& kernel : kernels) all.emplace(kernel.name, kernel.function);
    }
    return all;
  }();
  return by_name;
}

}  // namespace

std::vector<std::string> cuda_kernel_names() {
  std::vector<std::string> names;
  for (const auto& [name, function] : functions()) names.push_back(name);
  return names;
}

cudaError_t launch_cuda_kernel(const KernelLaunch& launch, cudaStream_t stream) {
  const auto found = functions().find(launch.kernel);
  if (found == functions().end()) return cudaErrorInvalidDeviceFunction;
  const void* function = found->second;
  if (launch.shared_bytes > kFreelySharedBytes) {
    const cudaError_t status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(launch.shared_bytes));
    if (status != cudaSuccess) return status;
  }
  std::vector<void*> parameters;
  for (const std::string& bytes : launch.parameters) parameters.push_back(const_cast<char*>(bytes.data()));
  return cudaLaunchKernel(function, dim3(launch.num_blocks), dim3(launch.num_threads), parameters.data(),
                          launch.shared_bytes, stream);
}

}  // namespace zoomzero
