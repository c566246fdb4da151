// What a block of the CUDA kernel of frame_resample holds in shared memory, and how it loads its tables.
#pragma once

#include "frame_resample/params.h"

namespace zoomzero {
namespace {

// What a block knows about its strip.
struct Strip {
  const uint8_t* pixels;  // of its first source column in the source frame's first row
  int x0, columns;        // output columns
  int source_x, source_columns;
  bool packed;  // pixels are three adjacent bytes
  bool exists;  // the frame's index is one of the source; else its output is NaN, as a read elsewhere would hide it
};

// An output column: its first source byte within a staged row, and its groups of taps.
struct Column {
  int first_byte, groups;
};

// An output row of the band: the ring's place of its first group of source rows, and how many it takes.
struct Row {
  int slot, groups;
};

// Values that lie side by side in the output: where they begin, seen from the band's first, and what they become.
struct Run {
  int64_t offset;
  float scale, shift;
};

// Where the four values of a vector of columns go, in row 0 of the finished bytes.
struct Places {
  int at[kVectorColumns];
};

// Groups of source rows that are staged: [first, first + count). `zero`: the group that lies in place 0 of the ring.
struct StagedGroups {
  int first, count, zero;
};

// Place in the ring of the group that comes `distance` groups after the one in place 0, less than two turns.
__device__ __forceinline__ int ring_slot(const FrameResampleLaunch& launch, int distance) {
  return distance < launch.ring_groups ? distance : distance - launch.ring_groups;
}

// A thread's first item of a ThreadGrid: packed, since a thread keeps four of them.
__device__ __forceinline__ unsigned first_item(const ThreadGrid& grid) {
  const unsigned thread = threadIdx.x;
  if (grid.columns >= static_cast<int>(blockDim.x)) return thread;
  const unsigned row = thread / grid.columns, column = thread % grid.columns;
  constexpr unsigned kBeyondAllRows = 0x7FFFFF;
  return (row < static_cast<unsigned>(grid.row_step) ? row : kBeyondAllRows) << 8 | column;
}
__device__ __forceinline__ int column_of(unsigned item) { return static_cast<int>(item & 0xFF); }
__device__ __forceinline__ int row_of(unsigned item) { return static_cast<int>(item >> 8); }

__device__ __forceinline__ uint32_t packed_weights(const int16_t* weights, int first, int size) {
  const uint32_t low = first >= 0 && first < size ? static_cast<uint16_t>(weights[first]) : 0;
  const uint32_t high = first + 1 >= 0 && first + 1 < size ? static_cast<uint16_t>(weights[first + 1]) : 0;
  return low | high << 16;
}

__device__ void load_columns(const FrameResampleParams& p, const FrameResampleLaunch& launch, const Strip& strip,
                             Column* columns, uint2* weights) {
  const AxisView& axis = p.horizontal;
  for (int x = threadIdx.x; x < strip.columns; x += blockDim.x) {
    const int start = axis.starts[strip.x0 + x], size = axis.sizes[strip.x0 + x];
    columns[x] = {(start - strip.source_x) * kChannels, (size + kGroupTaps - 1) / kGroupTaps};
    const int16_t* taps = axis.weights + static_cast<int64_t>(strip.x0 + x) * axis.taps;
#pragma unroll 1
    for (int k = 0; k < launch.horizontal_groups; ++k) {
      weights[k * launch.strip_w + x] = {packed_weights(taps, k * kGroupTaps, size),
                                         packed_weights(taps, k * kGroupTaps + 2, size)};
    }
  }
}

__device__ void load_runs(const FrameResampleParams& p, const FrameResampleLaunch& launch, const Strip& strip,
                          Run* runs) {
  const int ps = p.patches.patch_size;
  const int num_runs = ps == 0 ? kChannels * launch.band_rows : strip.columns / ps * kChannels;
  for (int r = threadIdx.x; r < num_runs; r += blockDim.x) {
    const int c = r % kChannels, dy = ps == 0 ? r / kChannels : 0, dx = ps == 0 ? 0 : r / kChannels * ps;
    const OutputRun where = output_run(p, 0, dy, strip.x0 + dx);
    runs[r] = {where.first + c * where.channel_stride, p.scale[c],
               strip.exists ? p.shift[c] : __int_as_float(0x7FC00000)};
  }
}

// Weights of the band's rows by groups of source rows; `zero`: the group that lies in place 0 of the ring.
__device__ void load_rows(const FrameResampleParams& p, const FrameResampleLaunch& launch, int y0, int num_rows,
                          int zero, Row* rows, uint2* weights) {
  const AxisView& axis = p.vertical;
#pragma unroll 1
  for (int y = threadIdx.x; y < num_rows; y += blockDim.x) {
    const int start = axis.starts[y0 + y], size = axis.sizes[y0 + y];
    const int group = start / kGroupRows;
    const int16_t* taps = axis.weights + static_cast<int64_t>(y0 + y) * axis.taps;
    rows[y] = {ring_slot(launch, group - zero), (start + size + kGroupRows - 1) / kGroupRows - group};
#pragma unroll 1
    for (int k = 0; k < launch.vertical_groups; ++k) {
      const int first = (group + k) * kGroupRows - start;
      weights[y * launch.vertical_groups + k] = {packed_weights(taps, first, size),
                                                 packed_weights(taps, first + 2, size)};
    }
  }
}

__device__ void load_places(const FrameResampleParams& p, const FrameResampleLaunch& launch, Places* places) {
  const int ps = p.patches.patch_size, vectors = launch.ring_pitch / kVectorColumns;
#pragma unroll 1
  for (int i = threadIdx.x; i < vectors * kChannels * kVectorColumns; i += blockDim.x) {
    const int vector = i / kVectorColumns;
    const int c = vector / vectors, x = vector % vectors * kVectorColumns + i % kVectorColumns;
    places[vector].at[i % kVectorColumns] =
        ps == 0 ? c * launch.run_pitch + x : (x / ps * kChannels + c) * launch.run_pitch + x % ps;
  }
}

}  // namespace
}  // namespace zoomzero
