// frame_resample on the CPU: driver of the row kernels.
//
// Problem: bicubic resize of uint8 RGB frames (horizontal pass, then vertical, both rounded to uint8), normalise, patch order.
// Parallelisation: the caller splits the list of (frame, band of output rows) among threads; a thread walks its bands in order.
// Memory traffic: every source row is read once a thread, every output element written once. Between the passes a ring holds
// the horizontally resized source rows that the current band needs; rows shared with the next band stay in it.
#include <algorithm>
#include <cstring>
#include <vector>

#include "frame_resample.h"
#include "frame_resample_rows.h"

namespace zoomzero {
namespace {

// Rows of a band in the planar layout, where nothing in the layout dictates one.
constexpr int32_t kPlanarBandRows = 16;

struct RowRange {
  int32_t begin, end;
};

// Source rows that output rows [y0, y1) need.
RowRange source_rows(const FrameResampleParams& p, int32_t y0, int32_t y1) {
  RowRange range{p.in_h, 0};
  for (int32_t y = y0; y < y1; ++y) {
    range.begin = std::min(range.begin, p.vertical.starts[y]);
    range.end = std::max(range.end, p.vertical.starts[y] + p.vertical.sizes[y]);
  }
  return range;
}

RowRange band_range(const FrameResampleParams& p, int32_t band) {
  const int32_t y0 = band * band_rows(p);
  return source_rows(p, y0, std::min(y0 + band_rows(p), p.out_h));
}

// A thread's scratch: the ring of resized rows, one band of finished rows, and packed copies of awkward source rows.
class BandWorker {
 public:
  BandWorker(const FrameResampleParams& p, const RowKernels& kernels) : p_(p), kernels_(kernels) {
    const int32_t num_bands = (p.out_h + band_rows(p) - 1) / band_rows(p);
    for (int32_t band = 0; band < num_bands; ++band) {
      const RowRange range = band_range(p, band);
      capacity_ = std::max(capacity_, range.end - range.begin);
    }
    row_bytes_ = (int64_t{p.out_w} * kChannels + kRowSlack + 63) / 64 * 64;
    const int64_t packed_pixels = std::max<int64_t>(p.in_w, p.horizontal.taps);
    packed_bytes_ = packed_pixels * kChannels + kRowSlack;
    ring_.resize(capacity_ * row_bytes_ + kRowGroup * row_bytes_);
    finished_.resize(row_bytes_);
    packed_.assign(kRowGroup * packed_bytes_, 0);
    row_pointers_.resize(p.vertical.taps);
  }

  void process(int64_t item) {
    const int32_t num_bands = (p_.out_h + band_rows(p_) - 1) / band_rows(p_);
    const int64_t slot = item / num_bands;
    const int32_t band = static_cast<int32_t>(item % num_bands);
    const RowRange needed = band_range(p_, band);
    if (slot != slot_ || needed.begin > ready_.end || needed.begin < ready_.begin) {
      slot_ = slot;
      ready_ = {needed.begin, needed.begin};
    }
    ready_.begin = needed.begin;
    while (ready_.end < needed.end) fill_rows(needed.end);
    const int32_t y0 = band * band_rows(p_);
    for (int32_t y = y0; y < std::min(y0 + band_rows(p_), p_.out_h); ++y) finish_row(y);
  }

 private:
  uint8_t* ring_row(int32_t source_row) { return ring_.data() + (source_row % capacity_) * row_bytes_; }

  // Horizontal pass of the next kRowGroup source rows (fewer before `end`: the spare outputs go to a dump row).
  void fill_rows(int32_t end) {
    const int64_t frame = p_.frame_indices == nullptr ? slot_ : p_.frame_indices[slot_];
    const uint8_t* source[kRowGroup];
    uint8_t* out[kRowGroup];
    const int32_t count = std::min(kRowGroup, end - ready_.end);
    for (int32_t r = 0; r < kRowGroup; ++r) {
      const int32_t row = ready_.end + std::min(r, count - 1);
      source[r] = r < count ? packed_row(frame, row, r) : source[count - 1];
      out[r] = r < count ? ring_row(row) : ring_.data() + (capacity_ + r) * row_bytes_;
    }
    kernels_.horizontal(source, p_.horizontal, p_.out_w, out);
    ready_.end += count;
  }

  // The source row as packed RGB that may be read past its end: itself, or a copy where it is strided, short or the last.
  const uint8_t* packed_row(int64_t frame, int32_t row, int32_t r) {
    const uint8_t* source = p_.frames + frame * p_.stride_frame + row * p_.stride_row;
    const bool packed = p_.stride_channel == 1 && p_.stride_pixel == kChannels;
    const bool followed = row + 1 < p_.in_h && p_.stride_row >= int64_t{p_.in_w} * kChannels &&
                          int64_t{p_.in_w} * kChannels >= kRowSlack;
    if (packed && followed && p_.in_w >= p_.horizontal.taps) return source;
    uint8_t* copy = packed_.data() + r * packed_bytes_;
    if (packed) {
      std::memcpy(copy, source, int64_t{p_.in_w} * kChannels);
      return copy;
    }
    for (int64_t x = 0; x < p_.in_w; ++x) {
      for (int64_t c = 0; c < kChannels; ++c) copy[x * kChannels + c] = source[x * p_.stride_pixel + c * p_.stride_channel];
    }
    return copy;
  }

  void finish_row(int32_t y) {
    const int32_t num_rows = p_.vertical.sizes[y];
    for (int32_t k = 0; k < num_rows; ++k) row_pointers_[k] = ring_row(p_.vertical.starts[y] + k);
    kernels_.vertical(row_pointers_.data(), p_.vertical.weights + int64_t{y} * p_.vertical.taps, num_rows,
                      p_.vertical.precision, finished_.data(), int64_t{p_.out_w} * kChannels);
    // The last frame fills what is left of its temporal patch.
    const int64_t tp = p_.patches.patch_size == 0 ? 1 : p_.patches.temporal_patch_size;
    const int64_t end_slot = slot_ + 1 == p_.num_frames ? (slot_ / tp + 1) * tp : slot_ + 1;
    const int64_t run_pixels = p_.patches.patch_size == 0 ? p_.out_w : p_.patches.patch_size;
    for (int64_t slot = slot_; slot < end_slot; ++slot) {
      for (int64_t x = 0; x < p_.out_w; x += run_pixels) {
        kernels_.store_run(finished_.data() + x * kChannels, run_pixels, p_, output_run(p_, slot, y, x));
      }
    }
  }

  const FrameResampleParams& p_;
  const RowKernels& kernels_;
  int32_t capacity_ = 1;
  int64_t row_bytes_ = 0;
  int64_t packed_bytes_ = 0;
  int64_t slot_ = -1;
  RowRange ready_{0, 0};  // source rows of frame slot_ that the ring holds
  std::vector<uint8_t> ring_, finished_, packed_;
  std::vector<const uint8_t*> row_pointers_;
};

const RowKernels& row_kernels() { return kScalarRows; }

}  // namespace

int32_t band_rows(const FrameResampleParams& p) {
  return p.patches.patch_size == 0 ? kPlanarBandRows : p.patches.patch_size;
}

int64_t num_work_items(const FrameResampleParams& p) {
  return p.num_frames * ((p.out_h + band_rows(p) - 1) / band_rows(p));
}

int32_t frame_resample_cpu_taps_multiple() { return row_kernels().taps_multiple; }

void frame_resample_cpu(const FrameResampleParams& p, int64_t begin_item, int64_t end_item) {
  BandWorker worker(p, row_kernels());
  for (int64_t item = begin_item; item < end_item; ++item) worker.process(item);
}

const char* frame_resample_cpu_capability() { return row_kernels().name; }

}  // namespace zoomzero
