// frame_resample on CUDA.
//
// Problem: bicubic resize of uint8 RGB frames (horizontal pass, then vertical, both rounded to uint8), normalise, patch
// order. Parallelisation: a block makes a strip of columns of one frame, walking down it a band of rows at a time.
// Source rows are staged in shared memory by 16-byte loads, resized horizontally into a ring of rows in shared memory,
// and from there the vertical pass runs in the order of the output, so that a warp's stores are contiguous (a patch's
// channel is 196 elements). Memory traffic: source bytes once (plus the overlap of neighbouring strips, under 10 % for
// 64 columns), output bytes once.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "frame_resample/op.h"

namespace zoomzero {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
// Blocks that a processor must hold at once: leaves 80 registers a thread, so that nothing spills.
constexpr int kMinBlocks = 3;
// Source rows a thread resizes at once: each weight is read once for 12 multiply-adds.
constexpr int kHorizontalRows = 4;

__device__ __forceinline__ void store(float* out, float value) { *out = value; }
__device__ __forceinline__ void store(__nv_bfloat16* out, float value) { *out = __float2bfloat16_rn(value); }
__device__ __forceinline__ void store(__half* out, float value) { *out = __float2half_rn(value); }

__device__ __forceinline__ int round_and_clamp(int sum, int precision) {
  return min(max((sum + ((1 << precision) >> 1)) >> precision, 0), 255);
}

// A weight whose 16-bit range the compiler does not know. It would otherwise shuffle pairs of weights and of pixels
// together for dp2a, an instruction that the PTX interpreter of the tests does not run, which would leave the kernel
// unproven.
__device__ __forceinline__ int opaque(int weight) {
  asm("" : "+r"(weight));
  return weight;
}

// What a block knows about its strip.
struct Strip {
  const uint8_t* frame;  // first byte of the source frame
  int x0, columns;       // output columns
  int source_x, source_columns;
  bool packed;  // pixels are three adjacent bytes
  bool
      exists;  // the frame's index is one of the source; otherwise its output is NaN, as a read elsewhere would hide it
};

// Bytes between a staged row's 16-byte aligned start and its first pixel.
__device__ __forceinline__ int misalignment(const FrameResampleParams& p, const Strip& strip, int row) {
  if (!strip.packed) return 0;
  return static_cast<int>(reinterpret_cast<uintptr_t>(strip.frame + row * p.stride_row + strip.source_x * kChannels) &
                          15);
}

// Source rows [row, row + count) of the strip to shared memory: whole 16-byte words where they lie inside the row's
// segment.
__device__ void stage_rows(const FrameResampleParams& p, const FrameResampleLaunch& launch, const Strip& strip, int row,
                           int count, uint8_t* stage) {
  if (!strip.packed) {
    const int per_row = strip.source_columns * kChannels;
    for (int i = threadIdx.x; i < count * per_row; i += kThreads) {
      const int r = i / per_row, j = i % per_row;
      const uint8_t* pixel = strip.frame + (row + r) * p.stride_row + (strip.source_x + j / kChannels) * p.stride_pixel;
      stage[r * launch.stage_pitch + j] = pixel[(j % kChannels) * p.stride_channel];
    }
    return;
  }
  const int words = launch.stage_pitch / 16;
  for (int i = threadIdx.x; i < count * words; i += kThreads) {
    const int r = i / words;
    const int first = misalignment(p, strip, row + r);
    const int last = first + strip.source_columns * kChannels;
    const int begin = (i % words) * 16;
    const uint8_t* aligned = strip.frame + (row + r) * p.stride_row + strip.source_x * kChannels - first;
    uint8_t* out = stage + r * launch.stage_pitch + begin;
    if (begin >= first && begin + 16 <= last) {
      *reinterpret_cast<uint4*>(out) = __ldg(reinterpret_cast<const uint4*>(aligned + begin));
    } else {
      for (int j = max(begin, first); j < min(begin + 16, last); ++j) out[j - begin] = aligned[j];
    }
  }
}

// Staged rows -> ring rows: a thread makes one output column of kHorizontalRows rows.
__device__ void horizontal_pass(const FrameResampleParams& p, const FrameResampleLaunch& launch, const Strip& strip,
                                int row, int count, const uint8_t* stage, const int16_t* weights, uint8_t* ring) {
  const int groups = (count + kHorizontalRows - 1) / kHorizontalRows;
  for (int i = threadIdx.x; i < groups * strip.columns; i += kThreads) {
    const int x = i % strip.columns, group = i / strip.columns * kHorizontalRows;
    const int offset = (p.horizontal.starts[strip.x0 + x] - strip.source_x) * kChannels;
    const int size = p.horizontal.sizes[strip.x0 + x];
    const uint8_t* source[kHorizontalRows];
    int sums[kHorizontalRows][kChannels] = {};
#pragma unroll
    for (int r = 0; r < kHorizontalRows; ++r) {
      const int staged = min(group + r, count - 1);
      source[r] = stage + staged * launch.stage_pitch + misalignment(p, strip, row + staged) + offset;
    }
    for (int k = 0; k < size; ++k) {
      const int weight = opaque(weights[k * launch.strip_w + x]);
#pragma unroll
      for (int r = 0; r < kHorizontalRows; ++r) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) sums[r][c] += weight * source[r][k * kChannels + c];
      }
    }
#pragma unroll
    for (int r = 0; r < kHorizontalRows; ++r) {
      if (group + r >= count) break;
      uint8_t* out = ring + (((row + group + r) % launch.ring_rows) * launch.strip_w + x) * kChannels;
#pragma unroll
      for (int c = 0; c < kChannels; ++c)
        out[c] = static_cast<uint8_t>(round_and_clamp(sums[r][c], p.horizontal.precision));
    }
  }
}

// Ring rows -> output rows [y0, y0 + rows) in the order of the output: a warp makes one channel of one run at a time.
template <typename T>
__device__ void vertical_pass(const FrameResampleParams& p, const FrameResampleLaunch& launch, const Strip& strip,
                              int y0, int rows, int64_t slot, int copies, const uint8_t* ring) {
  const bool planar = p.patches.patch_size == 0;
  // A run: `run_h` rows of `run_w` columns of one channel that lie together in the output.
  const int run_w = planar ? strip.columns : p.patches.patch_size;
  const int run_h = planar ? 1 : rows;
  const int runs_x = strip.columns / run_w;
  const int num_runs = runs_x * (rows / run_h) * kChannels;
  const int copy_stride = run_w * p.patches.patch_size;  // to the same pixel of the next frame of a temporal patch
  const int lane = threadIdx.x % kWarp;
  for (int run = threadIdx.x / kWarp; run < num_runs; run += kThreads / kWarp) {
    const int c = run % kChannels, x = run / kChannels % runs_x * run_w, y = y0 + run / kChannels / runs_x * run_h;
    const float scale = p.scale[c], shift = strip.exists ? p.shift[c] : __int_as_float(0x7FC00000);
    const OutputRun where = output_run(p, slot, y, strip.x0 + x);
    T* out = static_cast<T*>(p.output) + where.first + c * where.channel_stride;
    int dx = lane % run_w, dy = lane / run_w;
    for (int e = lane; e < run_w * run_h; e += kWarp) {
      const int16_t* weights = p.vertical.weights + static_cast<int64_t>(y + dy) * p.vertical.taps;
      const int size = p.vertical.sizes[y + dy];
      int ring_row = p.vertical.starts[y + dy] % launch.ring_rows;
      const uint8_t* column = ring + (x + dx) * kChannels + c;
      int sum = 0;
      for (int k = 0; k < size; ++k) {
        sum += opaque(__ldg(weights + k)) * column[ring_row * launch.strip_w * kChannels];
        ring_row = ring_row + 1 == launch.ring_rows ? 0 : ring_row + 1;
      }
      const float value = __fmaf_rn(static_cast<float>(round_and_clamp(sum, p.vertical.precision)), scale, shift);
      for (int copy = 0; copy < copies; ++copy) store(out + copy * copy_stride + e, value);
      dx += kWarp;
      while (dx >= run_w) {
        dx -= run_w;
        ++dy;
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    frame_resample_kernel(const FrameResampleParams p, const FrameResampleLaunch launch) {
  extern __shared__ __align__(16) uint8_t shared[];
  uint8_t* stage = shared;
  int16_t* weights = reinterpret_cast<int16_t*>(stage + launch.stage_rows * launch.stage_pitch);
  uint8_t* ring = reinterpret_cast<uint8_t*>(weights) + (p.horizontal.taps * launch.strip_w * 2 + 15) / 16 * 16;

  const int64_t block = blockIdx.x;
  const int64_t slot = block / (static_cast<int64_t>(launch.num_strips) * launch.num_blocks_y);
  const int in_frame = static_cast<int>(block % (static_cast<int64_t>(launch.num_strips) * launch.num_blocks_y));
  const int64_t frame = p.frame_indices == nullptr ? slot : p.frame_indices[slot];

  Strip strip;
  strip.exists = frame >= 0 && frame < p.num_source_frames;
  strip.frame = p.frames + (strip.exists ? frame : 0) * p.stride_frame;
  strip.x0 = in_frame % launch.num_strips * launch.strip_w;
  strip.columns = min(launch.strip_w, p.out_w - strip.x0);
  const int last_x = strip.x0 + strip.columns - 1;
  strip.source_x = p.horizontal.starts[strip.x0];
  strip.source_columns = p.horizontal.starts[last_x] + p.horizontal.sizes[last_x] - strip.source_x;
  strip.packed = p.stride_pixel == kChannels && p.stride_channel == 1;
  for (int i = threadIdx.x; i < strip.columns * p.horizontal.taps; i += kThreads) {
    const int x = i / p.horizontal.taps, k = i % p.horizontal.taps;
    weights[k * launch.strip_w + x] = p.horizontal.weights[static_cast<int64_t>(strip.x0 + x) * p.horizontal.taps + k];
  }

  // The last frame fills what is left of its temporal patch.
  const int tp = p.patches.patch_size == 0 ? 1 : p.patches.temporal_patch_size;
  const int copies = slot + 1 == p.num_frames ? tp - static_cast<int>(slot % tp) : 1;
  const int first_y = in_frame / launch.num_strips * launch.block_rows;
  const int last_y = min(first_y + launch.block_rows, p.out_h);
  int ready = p.vertical.starts[first_y];  // source rows before this one are in the ring, as far back as it reaches
  for (int y = first_y; y < last_y; y += launch.band_rows) {
    const int rows = min(launch.band_rows, last_y - y);
    const int needed = p.vertical.starts[y + rows - 1] + p.vertical.sizes[y + rows - 1];
    while (ready < needed) {
      const int count = min(launch.stage_rows, needed - ready);
      stage_rows(p, launch, strip, ready, count, stage);
      __syncthreads();
      horizontal_pass(p, launch, strip, ready, count, stage, weights, ring);
      __syncthreads();
      ready += count;
    }
    vertical_pass<T>(p, launch, strip, y, rows, slot, copies, ring);
    __syncthreads();
  }
}

template <typename T>
cudaError_t launch_as(const FrameResampleParams& p, const FrameResampleLaunch& launch, cudaStream_t stream) {
  const int64_t blocks = p.num_frames * launch.num_strips * launch.num_blocks_y;
  constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;
  if (blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  frame_resample_kernel<T><<<static_cast<unsigned>(blocks), kThreads, launch.shared_bytes, stream>>>(p, launch);
  return cudaGetLastError();
}

}  // namespace

cudaError_t frame_resample_cuda(const FrameResampleParams& p, const FrameResampleLaunch& launch, cudaStream_t stream) {
  switch (p.type) {
    case ElementType::kFloat32:
      return launch_as<float>(p, launch, stream);
    case ElementType::kBFloat16:
      return launch_as<__nv_bfloat16>(p, launch, stream);
    case ElementType::kFloat16:
      return launch_as<__half>(p, launch, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace zoomzero
