// The kernels of token_resample that the build compiles.
#include "token_resample/kernel.cuh"
#include "token_resample/op.h"

namespace zoomzero {
namespace {

template <ElementType kType, bool kVectors>
CudaKernel kernel_for() {
  return {token_resample_kernel_name(kType, kVectors),
          reinterpret_cast<const void*>(&token_resample_kernel<kType, kVectors>)};
}

}  // namespace

std::vector<CudaKernel> token_resample_kernels() {
  return {kernel_for<ElementType::kFloat32, true>(),  kernel_for<ElementType::kFloat32, false>(),
          kernel_for<ElementType::kBFloat16, true>(), kernel_for<ElementType::kBFloat16, false>(),
          kernel_for<ElementType::kFloat16, true>(),  kernel_for<ElementType::kFloat16, false>()};
}

}  // namespace zoomzero
