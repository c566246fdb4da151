// token_resample on CUDA: launches the kernel of kernel.cuh.
#include "token_resample/kernel.cuh"
#include "token_resample/op.h"

namespace zoomzero {
namespace {

template <ElementType kType>
cudaError_t launch_as(const TokenResampleParams& p, cudaStream_t stream) {
  const TokenResampleLaunch launch = plan_token_resample_cuda(p);
  const auto blocks = static_cast<unsigned>(launch.blocks);
  if (launch.vectors) {
    token_resample_kernel<kType, true><<<blocks, launch.threads, 0, stream>>>(p);
  } else {
    token_resample_kernel<kType, false><<<blocks, launch.threads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t token_resample_cuda(const TokenResampleParams& p, cudaStream_t stream) {
  switch (p.type) {
    case ElementType::kFloat32:
      return launch_as<ElementType::kFloat32>(p, stream);
    case ElementType::kBFloat16:
      return launch_as<ElementType::kBFloat16>(p, stream);
    case ElementType::kFloat16:
      return launch_as<ElementType::kFloat16>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace zoomzero
