// The CUDA kernel of frame_resample. It and what it includes know nothing of the host, so that NVRTC compiles them too.
//
// Problem: bicubic resize of uint8 RGB frames (horizontal pass, then vertical, both rounded to uint8), normalise, patch
// order. Parallelisation: a block makes a strip of columns of one frame, walking down it a band of rows at a time.
// Memory traffic: source bytes once (plus the overlap of neighbouring strips, under 10 % for 64 columns), output bytes
// once.
//
// Note [Ways of a pixel]: source rows come to shared memory by asynchronous copies, into one of two buffers while the
// other is worked on. The horizontal pass resizes groups of four of them into a ring of such groups, [group][channel]
// [column] words whose four bytes are one column of four source rows. That is what dp2a wants, two bytes by two 16-bit
// weights: the vertical pass takes four source rows of a column by two instructions, and both passes are exact in
// 32-bit integers. Finished bytes are gathered in shared memory in the order of the output, so that the last step,
// normalising, stores whole vectors side by side.
#pragma once

#include "frame_resample/block.cuh"
#include "frame_resample/passes.cuh"
#include "frame_resample/staging.cuh"

namespace zoomzero {
namespace {

constexpr int kMaxThreads = 256;
// Blocks that a processor must hold at once: leaves 64 registers a thread, so that nothing spills.
constexpr int kMinBlocks = 4;

// Two values, the first in the low half.
template <ElementType kType>
__device__ __forceinline__ uint32_t packed_halves(float first, float second) {
  uint32_t halves;
  if constexpr (kType == ElementType::kBFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(second), "f"(first));
  }
  return halves;
}

template <ElementType kType>
__device__ __forceinline__ void store(void* output, int64_t element, const float (&v)[kVectorColumns]) {
  if constexpr (kType == ElementType::kFloat32) {
    *reinterpret_cast<float4*>(static_cast<float*>(output) + element) = make_float4(v[0], v[1], v[2], v[3]);
  } else {
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(output) + element) =
        make_uint2(packed_halves<kType>(v[0], v[1]), packed_halves<kType>(v[2], v[3]));
  }
}

template <ElementType kType>
__device__ __forceinline__ void store(void* output, int64_t element, const float (&v)[1]) {
  if constexpr (kType == ElementType::kFloat32) {
    static_cast<float*>(output)[element] = v[0];
  } else {
    static_cast<uint16_t*>(output)[element] = static_cast<uint16_t>(packed_halves<kType>(v[0], 0.0f));
  }
}

// What a block stores of a band.
struct Band {
  int64_t first;  // element of the output
  int num_runs, elements_of_run;
  int copies;         // frames of a temporal patch that get it
  int64_t copy_step;  // elements from one to the next
};

// Finished bytes of the band -> output, normalised, kWidth side by side at once.
template <ElementType kType, int kWidth>
__device__ __forceinline__ void store_runs(void* output, const FrameResampleLaunch& launch, const Band& band,
                                           unsigned item, const Run* runs, const uint8_t* finished) {
#pragma unroll 1
  for (int part = column_of(item); part * kWidth < band.elements_of_run; part += launch.store_grid.column_step) {
#pragma unroll 1
    for (int r = row_of(item); r < band.num_runs; r += launch.store_grid.row_step) {
      const Run run = runs[r];
      const uint8_t* bytes = finished + r * launch.run_pitch + part * kWidth;
      int64_t element = band.first + run.offset + part * kWidth;
      uint32_t word;
      if constexpr (kWidth == 1) {
        word = *bytes;
      } else {
        word = *reinterpret_cast<const uint32_t*>(bytes);
      }
      float values[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        values[i] = __fmaf_rn(static_cast<float>((word >> (8 * i)) & 0xFF), run.scale, run.shift);
      }
#pragma unroll 1
      for (int copy = 0; copy < band.copies; ++copy, element += band.copy_step) {
        store<kType>(output, element, values);
      }
    }
  }
}

template <ElementType kType>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks)
    frame_resample_kernel(const FrameResampleParams p, const FrameResampleLaunch launch) {
  extern __shared__ __align__(16) uint8_t shared[];
  uint32_t* ring = reinterpret_cast<uint32_t*>(shared + launch.ring_at);
  int64_t* first_element = reinterpret_cast<int64_t*>(shared + launch.band_at);  // of the band in the output
  Run* runs = reinterpret_cast<Run*>(shared + launch.runs_at);
  Places* places = reinterpret_cast<Places*>(shared + launch.places_at);
  Column* columns = reinterpret_cast<Column*>(shared + launch.columns_at);
  uint2* horizontal_weights = reinterpret_cast<uint2*>(shared + launch.horizontal_weights_at);
  Row* rows = reinterpret_cast<Row*>(shared + launch.rows_at);
  uint2* vertical_weights = reinterpret_cast<uint2*>(shared + launch.vertical_weights_at);
  uint8_t* finished = shared + launch.finished_at;

  const unsigned blocks_of_frame = static_cast<unsigned>(launch.num_strips) * launch.num_blocks_y;
  const int64_t slot = blockIdx.x / blocks_of_frame;
  const int in_frame = static_cast<int>(blockIdx.x % blocks_of_frame);
  const int64_t frame = p.frame_indices == nullptr ? slot : p.frame_indices[slot];

  Strip strip;
  strip.exists = frame >= 0 && frame < p.num_source_frames;
  strip.x0 = in_frame % launch.num_strips * launch.strip_w;
  strip.columns = min(launch.strip_w, p.out_w - strip.x0);
  const int last_x = strip.x0 + strip.columns - 1;
  strip.source_x = p.horizontal.starts[strip.x0];
  strip.source_columns = p.horizontal.starts[last_x] + p.horizontal.sizes[last_x] - strip.source_x;
  strip.pixels = p.frames + (strip.exists ? frame : 0) * p.stride_frame + strip.source_x * p.stride_pixel;
  strip.packed = p.stride_pixel == kChannels && p.stride_channel == 1;

  // The last frame fills what is left of its temporal patch.
  const bool planar = p.patches.patch_size == 0;
  const int tp = planar ? 1 : p.patches.temporal_patch_size;
  Band band;
  band.copies = slot + 1 == p.num_frames ? tp - static_cast<int>(slot % tp) : 1;
  band.copy_step = int64_t{p.patches.patch_size} * p.patches.patch_size;
  const int first_y = in_frame / launch.num_strips * launch.block_rows;
  const int last_y = min(first_y + launch.block_rows, p.out_h);
  const int end = (p.vertical.starts[last_y - 1] + p.vertical.sizes[last_y - 1] + kGroupRows - 1) / kGroupRows;

  const unsigned stage_item = first_item(launch.stage_grid), horizontal_item = first_item(launch.horizontal_grid);
  const unsigned vertical_item = first_item(launch.vertical_grid), store_item = first_item(launch.store_grid);
  const int stage_bytes = launch.stage_groups * kGroupRows * launch.stage_pitch;
  // The groups of source rows in the making; those before are in the ring, as far back as it reaches.
  StagedGroups staged = {p.vertical.starts[first_y] / kGroupRows, 0, p.vertical.starts[first_y] / kGroupRows};
  int buffer = 0;
  load_columns(p, launch, strip, columns, horizontal_weights);
  load_runs(p, launch, strip, runs);
  load_places(p, launch, places);
#pragma unroll 1
  for (int y = first_y; y < last_y; y += launch.band_rows) {
    const int num_rows = min(launch.band_rows, last_y - y);
    const int last = y + num_rows - 1;
    const int needed = (p.vertical.starts[last] + p.vertical.sizes[last] + kGroupRows - 1) / kGroupRows;
    if (p.vertical.starts[y] / kGroupRows - staged.zero >= launch.ring_groups) staged.zero += launch.ring_groups;
    load_rows(p, launch, y, num_rows, staged.zero, rows, vertical_weights);
#pragma unroll 1
    while (staged.first < needed) {
      // Behind the barrier the copies of all threads have landed, and nobody reads the other buffer any more. At first
      // nothing is staged.
      wait_for_copies();
      __syncthreads();
      const int next = staged.first + staged.count, next_count = min(launch.stage_groups, end - next);
      if (next_count > 0) {
        stage_rows(p, launch, strip, stage_item, next * kGroupRows, next_count * kGroupRows,
                   shared + (1 - buffer) * stage_bytes);
      }
      horizontal_pass(p, launch, strip, horizontal_item, staged, shared + buffer * stage_bytes, columns,
                      horizontal_weights, ring);
      staged.first = next;
      staged.count = next_count;
      buffer = 1 - buffer;
    }
    __syncthreads();
    // Between the barriers, as the band before is stored until the first of them. By a thread of the last warp, which
    // has the least to do.
    if (threadIdx.x == blockDim.x - 1) *first_element = output_run(p, slot, y, 0).first;
    vertical_pass(p, launch, vertical_item, num_rows, rows, vertical_weights, places, ring, finished);
    __syncthreads();
    band.first = *first_element;
    band.num_runs = kChannels * (planar ? num_rows : strip.columns / p.patches.patch_size);
    band.elements_of_run = planar ? strip.columns : num_rows * p.patches.patch_size;
    if (!launch.stores_vectors) {
      store_runs<kType, 1>(p.output, launch, band, store_item, runs, finished);
    } else {
      store_runs<kType, kVectorColumns>(p.output, launch, band, store_item, runs, finished);
    }
  }
}

}  // namespace
}  // namespace zoomzero
