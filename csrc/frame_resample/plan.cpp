// How the CUDA kernel of frame_resample cuts its work. Plain arithmetic, kept apart so that it runs and is tested
// without a GPU.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "frame_resample/op.h"

namespace zoomzero {
namespace {

// Shared memory of a block: what every GPU grants without asking, and several of them fit one processor of an H100;
// then what every GPU from compute capability 8.0 on grants where asked, for extreme ratios.
constexpr int64_t kSharedBytes[] = {48 * 1024, 96 * 1024};
// Groups of source rows staged at once, the most first: more of them keep more copies in flight.
constexpr int32_t kStageGroups[] = {4, 2, 1};
constexpr int32_t kWarp = 32;
constexpr int32_t kMostThreads = 256;
// A wider strip re-reads less at its edges, a narrower one gives more blocks; 64 columns re-read 6 % at ratio 1.
constexpr int32_t kStripColumns = 64;
// Rows of a band in the planar layout, where nothing in the layout dictates one.
constexpr int32_t kPlanarBandRows = 8;
// Blocks a processor before splitting frames by height stops paying: enough to hide the tail of the last wave.
constexpr int64_t kBlocksPerProcessor = 8;
// Bytes of the kernel's structures Run, Column, Row and Places, of the weights of a group, and of the band's offset.
constexpr int64_t kRunBytes = 16, kColumnBytes = 8, kRowBytes = 8, kGroupWeightBytes = 8;
constexpr int64_t kBandBytes = 8, kPlacesBytes = 16;

int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
int64_t round_up(int64_t value, int64_t multiple) { return divide_up(value, multiple) * multiple; }

// Source elements that `count` neighbouring outputs of an axis span, at most.
int64_t source_span(int64_t count, int64_t in_size, int64_t out_size, const AxisView& axis) {
  const double ratio = static_cast<double>(in_size) / static_cast<double>(out_size);
  const int64_t span = static_cast<int64_t>(std::ceil(static_cast<double>(count - 1) * ratio)) + 1 + axis.taps;
  return std::min(span, in_size);
}

// Groups that `count` source rows touch, wherever they begin.
int64_t groups_touched(int64_t count) { return divide_up(count + kGroupRows - 1, kGroupRows); }

ThreadGrid thread_grid(int32_t columns, int32_t threads) {
  if (columns >= threads) return {columns, threads, 1};
  return {columns, columns, threads / columns};
}

// One band height, strip width and number of staged groups.
struct Cut {
  int32_t strip_w, band_rows, stage_groups;
};

// The launch of a cut, but for how rows are split among blocks.
FrameResampleLaunch lay_out(const FrameResampleParams& p, const Cut& cut) {
  const bool planar = p.patches.patch_size == 0;
  FrameResampleLaunch launch{};
  launch.strip_w = cut.strip_w;
  launch.band_rows = cut.band_rows;
  launch.stage_groups = cut.stage_groups;
  launch.threads =
      static_cast<int32_t>(std::min<int64_t>(kMostThreads, round_up(int64_t{cut.strip_w} * cut.stage_groups, kWarp)));
  launch.ring_pitch = static_cast<int32_t>(round_up(cut.strip_w, kVectorColumns));
  launch.horizontal_groups = static_cast<int32_t>(divide_up(p.horizontal.taps, kGroupTaps));
  launch.vertical_groups = static_cast<int32_t>(groups_touched(std::min(p.vertical.taps, p.in_h)));
  const int64_t window = groups_touched(source_span(cut.band_rows, p.in_h, p.out_h, p.vertical));
  launch.ring_groups = static_cast<int32_t>(window + cut.stage_groups - 1);
  // 15 bytes of misalignment before the first pixel; whole groups of taps, and the word behind them, may be read.
  const int64_t source_columns = source_span(cut.strip_w, p.in_w, p.out_w, p.horizontal) + kGroupTaps - 1;
  launch.stage_pitch = static_cast<int32_t>(round_up(source_columns * kChannels + kWordBytes - 1 + 4, kWordBytes));
  const int64_t num_runs = planar ? kChannels * cut.band_rows : cut.strip_w / p.patches.patch_size * kChannels;
  launch.run_pitch = static_cast<int32_t>(
      round_up(planar ? launch.ring_pitch : int64_t{cut.band_rows} * p.patches.patch_size, kVectorColumns));

  int64_t at = 2 * int64_t{cut.stage_groups} * kGroupRows * launch.stage_pitch;
  const auto take = [&at](int64_t num_bytes) {
    const auto begin = static_cast<int32_t>(std::min<int64_t>(at, INT32_MAX));
    at += round_up(num_bytes, 16);
    return begin;
  };
  launch.ring_at = take(int64_t{launch.ring_groups} * kChannels * launch.ring_pitch * kGroupRows);
  launch.band_at = take(kBandBytes);
  launch.runs_at = take(num_runs * kRunBytes);
  launch.places_at = take(int64_t{launch.ring_pitch} / kVectorColumns * kChannels * kPlacesBytes);
  launch.columns_at = take(cut.strip_w * kColumnBytes);
  launch.horizontal_weights_at = take(int64_t{launch.horizontal_groups} * cut.strip_w * kGroupWeightBytes);
  launch.rows_at = take(cut.band_rows * kRowBytes);
  launch.vertical_weights_at = take(int64_t{launch.vertical_groups} * cut.band_rows * kGroupWeightBytes);
  // A vector of columns may reach past the strip.
  launch.finished_at = take(num_runs * launch.run_pitch);
  launch.shared_bytes = static_cast<int32_t>(std::min<int64_t>(at, INT32_MAX));

  const int64_t alignment = kVectorColumns * bytes_of(p.type);
  const int64_t run = planar ? p.out_w : int64_t{cut.band_rows} * p.patches.patch_size;
  const int64_t patch = planar ? cut.strip_w : int64_t{p.patches.patch_size} * p.patches.patch_size;
  launch.stores_vectors = run % kVectorColumns == 0 && patch % kVectorColumns == 0 &&
                          reinterpret_cast<uintptr_t>(p.output) % static_cast<uintptr_t>(alignment) == 0;
  const int32_t width = launch.stores_vectors ? kVectorColumns : 1;
  const int32_t run_elements = planar ? cut.strip_w : cut.band_rows * p.patches.patch_size;
  launch.stage_grid = thread_grid(launch.stage_pitch / kWordBytes, launch.threads);
  launch.horizontal_grid = thread_grid(cut.strip_w, launch.threads);
  launch.vertical_grid = thread_grid(launch.ring_pitch / kVectorColumns * kChannels, launch.threads);
  launch.store_grid = thread_grid(run_elements / width, launch.threads);
  return launch;
}

}  // namespace

FrameResampleLaunch plan_frame_resample_cuda(const FrameResampleParams& p, int32_t num_processors) {
  const bool planar = p.patches.patch_size == 0;
  const int32_t unit_w = planar ? 1 : p.patches.patch_size;
  const int32_t unit_h = planar ? kPlanarBandRows : p.patches.patch_size;
  const auto first_fitting = [&]() -> FrameResampleLaunch {
    for (const int64_t granted : kSharedBytes) {
      for (int32_t band_rows = unit_h; band_rows >= 1; --band_rows) {
        if (unit_h % band_rows != 0) continue;
        for (int32_t units = std::max(1, std::min(kStripColumns, p.out_w) / unit_w); units >= 1; units /= 2) {
          for (const int32_t stage_groups : kStageGroups) {
            const FrameResampleLaunch launch = lay_out(p, {units * unit_w, band_rows, stage_groups});
            if (launch.shared_bytes <= granted) return launch;
          }
        }
      }
    }
    return {};
  };
  FrameResampleLaunch launch = first_fitting();
  if (launch.shared_bytes == 0) return launch;
  launch.num_strips = (p.out_w + launch.strip_w - 1) / launch.strip_w;
  const int64_t wanted = kBlocksPerProcessor * num_processors;
  const int64_t units_y = (p.out_h + unit_h - 1) / unit_h;
  const int64_t splits =
      std::clamp<int64_t>(wanted / std::max<int64_t>(1, p.num_frames * launch.num_strips), 1, units_y);
  launch.block_rows = static_cast<int32_t>((units_y + splits - 1) / splits) * unit_h;
  launch.num_blocks_y = (p.out_h + launch.block_rows - 1) / launch.block_rows;
  return launch;
}

std::string frame_resample_kernel_name(ElementType type) {
  return std::string("zoomzero::frame_resample_kernel<") + device_name(type) + ">";
}

KernelLaunch frame_resample_launch(const FrameResampleParams& p, int32_t num_processors) {
  const FrameResampleLaunch launch = plan_frame_resample_cuda(p, num_processors);
  const auto described = [&p] {
    return std::to_string(p.num_frames) + " frames of " + std::to_string(p.in_h) + "x" + std::to_string(p.in_w) +
           " to " + std::to_string(p.out_h) + "x" + std::to_string(p.out_w);
  };
  if (launch.shared_bytes == 0) {
    throw std::invalid_argument("frame_resample: on CUDA a side may shrink by a factor of about 200 at most, got " +
                                described() + "; resize in two steps");
  }
  const int64_t num_blocks = p.num_frames * launch.num_strips * launch.num_blocks_y;
  if (num_blocks > INT32_MAX) {
    throw std::invalid_argument("frame_resample: on CUDA a call may have 2^31 - 1 blocks at most, got " +
                                std::to_string(num_blocks) + " for " + described() + "; take fewer frames a call");
  }
  return {frame_resample_kernel_name(p.type),
          static_cast<uint32_t>(num_blocks),
          static_cast<uint32_t>(launch.threads),
          static_cast<uint32_t>(launch.shared_bytes),
          {bytes_of_object(p), bytes_of_object(launch)}};
}

}  // namespace zoomzero
