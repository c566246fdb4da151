// The kernels of frame_resample that the build compiles.
#include "frame_resample/kernel.cuh"
#include "frame_resample/op.h"

namespace zoomzero {
namespace {

template <ElementType kType>
CudaKernel kernel_for() {
  return {frame_resample_kernel_name(kType), reinterpret_cast<const void*>(&frame_resample_kernel<kType>)};
}

}  // namespace

std::vector<CudaKernel> frame_resample_kernels() {
  return {kernel_for<ElementType::kFloat32>(), kernel_for<ElementType::kBFloat16>(),
          kernel_for<ElementType::kFloat16>()};
}

}  // namespace zoomzero
