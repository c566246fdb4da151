// How the CUDA kernel of token_resample is launched. Plain arithmetic, kept apart so that it runs and is tested without
// a GPU.
#include <algorithm>

#include "token_resample/op.h"

namespace zoomzero {

std::string token_resample_kernel_name(ElementType type, bool vectors) {
  return std::string("zoomzero::token_resample_kernel<") + device_name(type) + (vectors ? ", true>" : ", false>");
}

KernelLaunch token_resample_launch(const TokenResampleParams& p) {
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1, kMostThreads = 512, kWarp = 32, kVectorBytes = 16;
  const int64_t in_vector = kVectorBytes / bytes_of(p.type);
  const auto addresses = reinterpret_cast<uintptr_t>(p.in) | reinterpret_cast<uintptr_t>(p.out);
  const bool vectors = p.dim % in_vector == 0 && addresses % kVectorBytes == 0;
  const int64_t parts = vectors ? p.dim / in_vector : p.dim;
  // As few turns as kMostThreads allow, and in each as many threads as in the last but for whole warps.
  const int64_t turns = std::max<int64_t>(1, (parts + kMostThreads - 1) / kMostThreads);
  const int64_t warps = std::max<int64_t>(1, (parts + turns * kWarp - 1) / (turns * kWarp));
  return {token_resample_kernel_name(p.type, vectors),
          static_cast<uint32_t>(std::min(p.num_out, kMostBlocks)),
          static_cast<uint32_t>(warps * kWarp),
          0,
          {bytes_of_object(p)}};
}

}  // namespace zoomzero
