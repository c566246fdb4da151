// Source rows of frame_resample to shared memory, by asynchronous copies where they lie in whole words.
#pragma once

#include "frame_resample/block.cuh"

namespace zoomzero {
namespace {

__device__ __forceinline__ void copy_word_async(uint8_t* shared, const uint8_t* global) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

// Until all copies that this thread began have landed.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// First byte of the strip in a source row; rows past the frame repeat the last, where their weights are zero.
__device__ __forceinline__ const uint8_t* source_row(const FrameResampleParams& p, const Strip& strip, int row) {
  return strip.pixels + min(row, p.in_h - 1) * p.stride_row;
}

// Bytes between a staged row's 16-byte aligned start and its first pixel; low halves of addresses suffice.
__device__ __forceinline__ int misalignment(const FrameResampleParams& p, const Strip& strip, int row) {
  const auto pixels = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(strip.pixels));
  const uint32_t address = pixels + static_cast<uint32_t>(min(row, p.in_h - 1)) * static_cast<uint32_t>(p.stride_row);
  return strip.packed ? static_cast<int>(address % kWordBytes) : 0;
}

// Source rows [row, row + count) of a strip whose pixels do not lie side by side to `stage`, byte by byte.
__device__ void stage_strided_rows(const FrameResampleParams& p, const FrameResampleLaunch& launch, const Strip& strip,
                                   int row, int count, uint8_t* stage) {
  const int row_bytes = strip.source_columns * kChannels;
#pragma unroll 1
  for (int r = 0; r < count; ++r) {
    const uint8_t* first = source_row(p, strip, row + r);
#pragma unroll 1
    for (int j = threadIdx.x; j < row_bytes; j += blockDim.x) {
      stage[r * launch.stage_pitch + j] = first[j / kChannels * p.stride_pixel + j % kChannels * p.stride_channel];
    }
  }
}

// Begins to copy source rows [row, row + count) of the strip to `stage`: whole words where they lie inside the frame's
// row, else byte by byte.
__device__ void stage_rows(const FrameResampleParams& p, const FrameResampleLaunch& launch, const Strip& strip,
                           unsigned item, int row, int count, uint8_t* stage) {
  if (!strip.packed) return stage_strided_rows(p, launch, strip, row, count, stage);
  const int row_bytes = strip.source_columns * kChannels;
  // Of the frame's row, seen from the strip's first byte.
  const int row_begin = -strip.source_x * kChannels, row_end = row_begin + p.in_w * kChannels;
#pragma unroll 1
  for (int word = column_of(item); word < launch.stage_grid.columns; word += launch.stage_grid.column_step) {
#pragma unroll 1
    for (int r = row_of(item); r < count; r += launch.stage_grid.row_step) {
      const int begin = word * kWordBytes - misalignment(p, strip, row + r);
      if (begin >= row_bytes) continue;
      const uint8_t* first = source_row(p, strip, row + r);
      uint8_t* out = stage + r * launch.stage_pitch + word * kWordBytes;
      if (begin >= row_begin && begin + kWordBytes <= row_end) {
        copy_word_async(out, first + begin);
      } else {
#pragma unroll 1
        for (int j = max(begin, 0); j < min(begin + kWordBytes, row_bytes); ++j) out[j - begin] = first[j];
      }
    }
  }
}

}  // namespace
}  // namespace zoomzero
