// token_resample on CUDA, forward and backward.
//
// Problem: every output token is a weighted sum of the few input tokens that its cell covers.
// Parallelisation: a block makes one output token; its threads take the channels, 16 bytes at a time where rows are
// aligned. Both directions gather, so there are no atomics and the result is deterministic. Memory traffic: where the
// ratio is whole, every input and output element once; else neighbours share input tokens through L2.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "token_resample/op.h"

namespace zoomzero {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ void narrow(float value, float* out) { *out = value; }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16* out) { *out = __float2bfloat16_rn(value); }
__device__ __forceinline__ void narrow(float value, __half* out) { *out = __float2half_rn(value); }

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  T values[kVector];
};

// The slice that holds output token `token`: the last that starts at or before it. Empty slices do not exist.
__device__ __forceinline__ TokenSlice find_slice(const TokenResampleParams& p, int64_t token) {
  int64_t low = 0, high = p.num_slices;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (p.slices[middle].first_out <= token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return p.slices[low];
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads) token_resample_kernel(const TokenResampleParams p) {
  using Vector = Pack<T, kVector>;
  for (int64_t token = blockIdx.x; token < p.num_out; token += gridDim.x) {
    const TokenSlice slice = find_slice(p, token);
    const int64_t row = (token - slice.first_out) / slice.out_w, column = (token - slice.first_out) % slice.out_w;
    const CellRange ys = covered_cells(row, slice.out_h, slice.in_h);
    const CellRange xs = covered_cells(column, slice.out_w, slice.in_w);
    const float unit_h = 1.0f / static_cast<float>(p.backward ? slice.out_h : slice.in_h);
    const float unit_w = 1.0f / static_cast<float>(p.backward ? slice.out_w : slice.in_w);
    for (int64_t d = threadIdx.x * kVector; d < p.dim; d += kThreads * kVector) {
      float sums[kVector] = {};
      for (int64_t y = ys.first; y < ys.end; ++y) {
        const float weight_y = static_cast<float>(overlap(row, slice.out_h, y, slice.in_h)) * unit_h;
        for (int64_t x = xs.first; x < xs.end; ++x) {
          const float weight = weight_y * (static_cast<float>(overlap(column, slice.out_w, x, slice.in_w)) * unit_w);
          const T* in = static_cast<const T*>(p.in) + (slice.first_in + y * slice.in_w + x) * p.dim + d;
          const Vector values = *reinterpret_cast<const Vector*>(in);
#pragma unroll
          for (int v = 0; v < kVector; ++v) sums[v] = __fmaf_rn(weight, widen(values.values[v]), sums[v]);
        }
      }
      Vector result;
#pragma unroll
      for (int v = 0; v < kVector; ++v) narrow(sums[v], &result.values[v]);
      *reinterpret_cast<Vector*>(static_cast<T*>(p.out) + token * p.dim + d) = result;
    }
  }
}

template <typename T>
cudaError_t launch_as(const TokenResampleParams& p, cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(T);
  constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;
  const unsigned blocks = static_cast<unsigned>(p.num_out < kMaxBlocks ? p.num_out : kMaxBlocks);
  const auto address = reinterpret_cast<uintptr_t>(p.in) | reinterpret_cast<uintptr_t>(p.out);
  if (p.dim % kVector == 0 && address % 16 == 0) {
    token_resample_kernel<T, kVector><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    token_resample_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t token_resample_cuda(const TokenResampleParams& p, cudaStream_t stream) {
  switch (p.type) {
    case ElementType::kFloat32:
      return launch_as<float>(p, stream);
    case ElementType::kBFloat16:
      return launch_as<__nv_bfloat16>(p, stream);
    case ElementType::kFloat16:
      return launch_as<__half>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace zoomzero
