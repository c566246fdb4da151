// frame_resample on CUDA: launches the kernel of kernel.cuh.
#include "frame_resample/kernel.cuh"
#include "frame_resample/op.h"

namespace zoomzero {
namespace {

// What a block may take of every GPU without asking.
constexpr int32_t kGrantedSharedBytes = 48 * 1024;

template <ElementType kType>
cudaError_t launch_as(const FrameResampleParams& p, const FrameResampleLaunch& launch, cudaStream_t stream) {
  const int64_t blocks = p.num_frames * launch.num_strips * launch.num_blocks_y;
  constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;
  if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  if (launch.shared_bytes > kGrantedSharedBytes) {
    const cudaError_t status = cudaFuncSetAttribute(frame_resample_kernel<kType>,
                                                    cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared_bytes);
    if (status != cudaSuccess) return status;
  }
  frame_resample_kernel<kType>
      <<<static_cast<unsigned>(blocks), launch.threads, launch.shared_bytes, stream>>>(p, launch);
  return cudaGetLastError();
}

}  // namespace

cudaError_t frame_resample_cuda(const FrameResampleParams& p, const FrameResampleLaunch& launch, cudaStream_t stream) {
  switch (p.type) {
    case ElementType::kFloat32:
      return launch_as<ElementType::kFloat32>(p, launch, stream);
    case ElementType::kBFloat16:
      return launch_as<ElementType::kBFloat16>(p, launch, stream);
    case ElementType::kFloat16:
      return launch_as<ElementType::kFloat16>(p, launch, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace zoomzero
