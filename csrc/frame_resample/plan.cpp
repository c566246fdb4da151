// How the CUDA kernel of frame_resample cuts its work. Plain arithmetic, kept apart so that it runs and is tested
// without a GPU.
#include <algorithm>
#include <cmath>

#include "frame_resample/op.h"

namespace zoomzero {
namespace {

// Shared memory that every GPU grants a block without opting in; several blocks of this size fit one processor of an
// H100.
constexpr int64_t kSharedBytes = 48 * 1024;
constexpr int32_t kHorizontalRows = 4;
constexpr int32_t kMaxStageRows = 32;
// A wider strip re-reads less at its edges, a narrower one gives more blocks; 64 columns re-read 6 % at ratio 1.
constexpr int32_t kStripColumns = 64;
// Blocks a processor before splitting frames by height stops paying: enough to hide the tail of the last wave.
constexpr int64_t kBlocksPerProcessor = 8;

// Source elements that `count` neighbouring outputs of an axis span, at most.
int64_t source_span(int64_t count, int64_t in_size, int64_t out_size, const AxisView& axis) {
  const double ratio = static_cast<double>(in_size) / static_cast<double>(out_size);
  const int64_t span = static_cast<int64_t>(std::ceil(static_cast<double>(count - 1) * ratio)) + 1 + axis.taps;
  return std::min(span, in_size);
}

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Fills in the memory plan of a strip width and band height; false where it does not fit.
bool fit(const FrameResampleParams& p, int32_t strip_w, int32_t band_rows, FrameResampleLaunch& launch) {
  const int64_t ring_rows = source_span(band_rows, p.in_h, p.out_h, p.vertical);
  const int64_t ring_bytes = round_up(ring_rows * strip_w * kChannels, 16);
  // 15 bytes of misalignment before the first pixel, rounded up to whole 16-byte loads.
  const int64_t pitch = round_up(source_span(strip_w, p.in_w, p.out_w, p.horizontal) * kChannels + 15, 16);
  const int64_t weight_bytes = round_up(int64_t{p.horizontal.taps} * strip_w * 2, 16);
  const int64_t left = kSharedBytes - ring_bytes - weight_bytes;
  const int64_t stage_rows = std::min<int64_t>(kMaxStageRows, left / pitch / kHorizontalRows * kHorizontalRows);
  if (left <= 0 || stage_rows < kHorizontalRows) return false;
  launch.strip_w = strip_w;
  launch.band_rows = band_rows;
  launch.ring_rows = static_cast<int32_t>(ring_rows);
  launch.stage_pitch = static_cast<int32_t>(pitch);
  launch.stage_rows = static_cast<int32_t>(std::min(stage_rows, round_up(ring_rows, kHorizontalRows)));
  launch.shared_bytes = static_cast<int32_t>(ring_bytes + weight_bytes + launch.stage_rows * pitch);
  return true;
}

}  // namespace

FrameResampleLaunch plan_frame_resample_cuda(const FrameResampleParams& p, int32_t num_processors) {
  FrameResampleLaunch launch{};
  const bool planar = p.patches.patch_size == 0;
  const int32_t unit_w = planar ? 1 : p.patches.patch_size;
  const int32_t unit_h = planar ? 8 : p.patches.patch_size;
  bool found = false;
  for (int32_t band_rows = unit_h; band_rows >= 1 && !found; --band_rows) {
    if (unit_h % band_rows != 0) continue;
    for (int32_t units = std::max(1, std::min(kStripColumns, p.out_w) / unit_w); units >= 1 && !found; units /= 2) {
      found = fit(p, units * unit_w, band_rows, launch);
    }
  }
  if (!found) return launch;
  launch.num_strips = (p.out_w + launch.strip_w - 1) / launch.strip_w;
  const int64_t wanted = kBlocksPerProcessor * num_processors;
  const int64_t units_y = (p.out_h + unit_h - 1) / unit_h;
  const int64_t splits =
      std::clamp<int64_t>(wanted / std::max<int64_t>(1, p.num_frames * launch.num_strips), 1, units_y);
  launch.block_rows = static_cast<int32_t>((units_y + splits - 1) / splits) * unit_h;
  launch.num_blocks_y = (p.out_h + launch.block_rows - 1) / launch.block_rows;
  return launch;
}

}  // namespace zoomzero
