// The two passes of frame_resample over a block's shared memory, in exact 32-bit integers.
#pragma once

#include "frame_resample/block.cuh"
#include "frame_resample/staging.cuh"

namespace zoomzero {
namespace {

// sum + two signed 16-bit weights by bytes 0 and 1 of `bytes`, or 2 and 3.
__device__ __forceinline__ int add_low(uint32_t weights, uint32_t bytes, int sum) {
  asm("dp2a.lo.s32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(weights), "r"(bytes));
  return sum;
}
__device__ __forceinline__ int add_high(uint32_t weights, uint32_t bytes, int sum) {
  asm("dp2a.hi.s32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(weights), "r"(bytes));
  return sum;
}

// The four sums, in units of 2^-precision and already half a unit up, as bytes: value 0 lowest.
__device__ __forceinline__ uint32_t to_bytes(int s0, int s1, int s2, int s3, int precision) {
  uint32_t bytes;
  asm("{.reg .b32 high;\n"
      "cvt.pack.sat.u8.s32.b32 high, %4, %3, 0;\n"
      "cvt.pack.sat.u8.s32.b32 %0, %2, %1, high;}"
      : "=r"(bytes)
      : "r"(s0 >> precision), "r"(s1 >> precision), "r"(s2 >> precision), "r"(s3 >> precision));
  return bytes;
}

__device__ __forceinline__ int half_unit(int precision) { return (1 << precision) >> 1; }

// One source row as a thread of the horizontal pass reads it: words from an aligned place, shifted to the first pixel.
struct StagedRow {
  const uint32_t* words;
  uint32_t carried;  // the last word read
  int shift;

  __device__ __forceinline__ uint32_t next() {
    const uint32_t low = carried;
    carried = *++words;
    return __funnelshift_r(low, carried, shift);
  }
};

// Staged groups -> ring: a thread makes one output column of a group.
__device__ void horizontal_pass(const FrameResampleParams& p, const FrameResampleLaunch& launch, const Strip& strip,
                                unsigned item, const StagedGroups& staged, const uint8_t* stage, const Column* columns,
                                const uint2* weights, uint32_t* ring) {
  const int precision = p.horizontal.precision;
#pragma unroll 1
  for (int x = column_of(item); x < strip.columns; x += launch.horizontal_grid.column_step) {
    const Column column = columns[x];
#pragma unroll 1
    for (int group = row_of(item); group < staged.count; group += launch.horizontal_grid.row_step) {
      StagedRow rows[kGroupRows];
      int sums[kGroupRows][kChannels];
#pragma unroll
      for (int r = 0; r < kGroupRows; ++r) {
        const int row = group * kGroupRows + r;
        const int at =
            row * launch.stage_pitch + misalignment(p, strip, staged.first * kGroupRows + row) + column.first_byte;
        rows[r].words = reinterpret_cast<const uint32_t*>(stage + (at & ~3));
        rows[r].shift = (at & 3) * 8;
        rows[r].carried = *rows[r].words;
#pragma unroll
        for (int c = 0; c < kChannels; ++c) sums[r][c] = half_unit(precision);
      }
#pragma unroll 1
      for (int k = 0; k < column.groups; ++k) {
        const uint2 weight = weights[k * launch.strip_w + x];
#pragma unroll
        for (int r = 0; r < kGroupRows; ++r) {
          // Four pixels: RGBR GBRG BRGB, lowest byte first.
          const uint32_t w0 = rows[r].next(), w1 = rows[r].next(), w2 = rows[r].next();
          const uint32_t red_green_01 = __byte_perm(w0, w1, 0x4130), red_green_23 = __byte_perm(w1, w2, 0x6352);
          const uint32_t blue_01 = __byte_perm(w0, w1, 0x5252), blue_23 = __byte_perm(w2, w2, 0x3030);
          sums[r][0] = add_low(weight.y, red_green_23, add_low(weight.x, red_green_01, sums[r][0]));
          sums[r][1] = add_high(weight.y, red_green_23, add_high(weight.x, red_green_01, sums[r][1]));
          sums[r][2] = add_low(weight.y, blue_23, add_low(weight.x, blue_01, sums[r][2]));
        }
      }
      uint32_t* out = ring + ring_slot(launch, staged.first + group - staged.zero) * kChannels * launch.ring_pitch + x;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        out[c * launch.ring_pitch] = to_bytes(sums[0][c], sums[1][c], sums[2][c], sums[3][c], precision);
      }
    }
  }
}

// Ring -> finished bytes of a band of rows, in the order of the output: a thread makes kVectorColumns columns.
__device__ void vertical_pass(const FrameResampleParams& p, const FrameResampleLaunch& launch, unsigned item,
                              int num_rows, const Row* rows, const uint2* weights, const Places* places,
                              const uint32_t* ring, uint8_t* finished) {
  const int precision = p.vertical.precision;
  const int group_step = kChannels * launch.ring_pitch, ring_words = launch.ring_groups * group_step;
  const uint32_t* end = ring + ring_words;
  const int row_step = p.patches.patch_size == 0 ? kChannels * launch.run_pitch : p.patches.patch_size;
#pragma unroll 1
  for (int vector = column_of(item); vector < launch.vertical_grid.columns;
       vector += launch.vertical_grid.column_step) {
    const Places place = places[vector];
#pragma unroll 1
    for (int y = row_of(item); y < num_rows; y += launch.vertical_grid.row_step) {
      const Row row = rows[y];
      const uint2* weight = weights + y * launch.vertical_groups;
      const uint32_t* words = ring + row.slot * group_step + vector * kVectorColumns;
      int sums[kVectorColumns];
#pragma unroll
      for (int i = 0; i < kVectorColumns; ++i) sums[i] = half_unit(precision);
#pragma unroll 1
      for (int k = 0; k < row.groups; ++k) {
        const uint2 w = weight[k];
        const uint4 v = *reinterpret_cast<const uint4*>(words);
        sums[0] = add_high(w.y, v.x, add_low(w.x, v.x, sums[0]));
        sums[1] = add_high(w.y, v.y, add_low(w.x, v.y, sums[1]));
        sums[2] = add_high(w.y, v.z, add_low(w.x, v.z, sums[2]));
        sums[3] = add_high(w.y, v.w, add_low(w.x, v.w, sums[3]));
        words += group_step;
        if (words >= end) words -= ring_words;
      }
      const uint32_t bytes = to_bytes(sums[0], sums[1], sums[2], sums[3], precision);
#pragma unroll
      for (int i = 0; i < kVectorColumns; ++i) {
        finished[place.at[i] + y * row_step] = static_cast<uint8_t>(bytes >> (8 * i));
      }
    }
  }
}

}  // namespace
}  // namespace zoomzero
