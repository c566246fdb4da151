// The CUDA kernel of token_resample, forward and backward. It and what it includes know nothing of the host, so that
// NVRTC compiles them too.
//
// Problem: every output token is a weighted sum of the few input tokens that its cell covers.
// Parallelisation: a block makes one output token; its threads take the channels, 16 bytes at a time where rows are
// aligned, and load kCellsAtOnce input tokens before they use the first. Both directions gather, so there are no
// atomics and the result is deterministic. Memory traffic: where the ratio is whole, every input and output element
// once; else neighbours share input tokens through L2.
#pragma once

#include "token_resample/params.h"

namespace zoomzero {
namespace {

constexpr int kMostThreads = 512;
// Blocks of kMostThreads that a processor must hold at once: leaves 64 registers a thread.
constexpr int kFewestBlocks = 2;
constexpr int kCellsAtOnce = 4;

// 16 bytes of channels, or one channel.
template <ElementType kType, bool kVectors>
struct Channels {
  static constexpr int kWords = kVectors ? 4 : 1;
  static constexpr int kInWord = kVectors && kType != ElementType::kFloat32 ? 2 : 1;
  static constexpr int kCount = kWords * kInWord;
  static constexpr int64_t kBytes = bytes_of(kType);  // of a channel
  uint32_t words[kWords];

  __device__ __forceinline__ void load(const void* base, int64_t element) {
    if constexpr (kVectors) {
      const uint4 loaded = *reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(base) + element * kBytes);
      words[0] = loaded.x;
      words[1] = loaded.y;
      words[2] = loaded.z;
      words[3] = loaded.w;
    } else if constexpr (kType == ElementType::kFloat32) {
      words[0] = static_cast<const uint32_t*>(base)[element];
    } else {
      words[0] = static_cast<const uint16_t*>(base)[element];
    }
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (uint32_t& word : words) word = 0;
  }

  __device__ __forceinline__ float value(int i) const {
    const uint32_t word = words[i / kInWord];
    if constexpr (kType == ElementType::kFloat32) {
      return __uint_as_float(word);
    } else if constexpr (kType == ElementType::kBFloat16) {
      return __uint_as_float(i % kInWord == 0 ? word << 16 : word & 0xFFFF0000u);
    } else {
      float value;
      const auto half = static_cast<uint16_t>(i % kInWord == 0 ? word : word >> 16);
      asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
      return value;
    }
  }
};

template <ElementType kType>
__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
  uint32_t pair;
  if constexpr (kType == ElementType::kBFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

template <ElementType kType, bool kVectors>
__device__ __forceinline__ void store(void* base, int64_t element,
                                      const float (&sums)[Channels<kType, kVectors>::kCount]) {
  uint8_t* out = static_cast<uint8_t*>(base) + element * Channels<kType, kVectors>::kBytes;
  if constexpr (kVectors && kType == ElementType::kFloat32) {
    *reinterpret_cast<float4*>(out) = make_float4(sums[0], sums[1], sums[2], sums[3]);
  } else if constexpr (kVectors) {
    *reinterpret_cast<uint4*>(out) =
        make_uint4(rounded_pair<kType>(sums[0], sums[1]), rounded_pair<kType>(sums[2], sums[3]),
                   rounded_pair<kType>(sums[4], sums[5]), rounded_pair<kType>(sums[6], sums[7]));
  } else if constexpr (kType == ElementType::kFloat32) {
    *reinterpret_cast<float*>(out) = sums[0];
  } else {
    *reinterpret_cast<uint16_t*>(out) = static_cast<uint16_t>(rounded_pair<kType>(sums[0], 0.0f));
  }
}

template <ElementType kType, bool kVectors>
__global__ void __launch_bounds__(kMostThreads, kFewestBlocks) token_resample_kernel(const TokenResampleParams p) {
  using Loaded = Channels<kType, kVectors>;
  constexpr int kCount = Loaded::kCount;
  for (int64_t token = blockIdx.x; token < p.num_out; token += gridDim.x) {
    const TokenSlice slice = p.slices[p.slice_of_token[token]];
    const auto in_h = static_cast<int32_t>(slice.in_h), in_w = static_cast<int32_t>(slice.in_w);
    const auto out_h = static_cast<int32_t>(slice.out_h), out_w = static_cast<int32_t>(slice.out_w);
    const auto cell = static_cast<int32_t>(token - slice.first_out);
    const int32_t row = cell / out_w, column = cell - row * out_w;
    const CellRange ys = covered_cells(row, out_h, in_h), xs = covered_cells(column, out_w, in_w);
    const float unit_h = 1.0f / static_cast<float>(p.backward ? out_h : in_h);
    const float unit_w = 1.0f / static_cast<float>(p.backward ? out_w : in_w);
    for (int64_t d = threadIdx.x * kCount; d < p.dim; d += blockDim.x * kCount) {
      float sums[kCount] = {};
      int32_t y = ys.first, x = xs.first;
      while (y < ys.end) {
        // All loads of a turn before their uses. What stands for cells behind the last is zero, not their memory.
        Loaded loaded[kCellsAtOnce];
        float weights[kCellsAtOnce];
#pragma unroll
        for (int i = 0; i < kCellsAtOnce; ++i) {
          loaded[i].clear();
          weights[i] = 0.0f;
          if (y < ys.end) {
            loaded[i].load(p.in, (slice.first_in + (y * in_w + x)) * p.dim + d);
            const float weight_y = static_cast<float>(overlap(row, out_h, y, in_h)) * unit_h;
            weights[i] = weight_y * (static_cast<float>(overlap(column, out_w, x, in_w)) * unit_w);
            if (++x == xs.end) {
              x = xs.first;
              ++y;
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kCellsAtOnce; ++i) {
#pragma unroll
          for (int v = 0; v < kCount; ++v) sums[v] = __fmaf_rn(weights[i], loaded[i].value(v), sums[v]);
        }
      }
      store<kType, kVectors>(p.out, token * p.dim + d, sums);
    }
  }
}

}  // namespace
}  // namespace zoomzero
