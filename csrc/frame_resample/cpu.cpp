// frame_resample on the CPU: driver of the row kernels.
//
// Problem: bicubic resize of uint8 RGB frames (horizontal pass, then vertical, both rounded to uint8), normalise, patch
// order. Parallelisation: the list of (temporal patch, band of output rows) is split among threads, which walk their
// items in order. Memory traffic: every source row is read once a thread, every output element written once.
// Between the passes a ring for each frame holds the horizontally resized source rows that the current band needs; rows
// shared with the next band stay.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/copy_out.h"
#include "common/cpu_capability.h"
#include "common/huge_pages.h"
#include "common/parallel.h"
#include "frame_resample/op.h"
#include "frame_resample/rows.h"

namespace zoomzero {
namespace {

// Rows of a band in the planar layout, where nothing in the layout dictates one.
constexpr int32_t kPlanarBandRows = 16;

struct RowRange {
  int32_t begin, end;
};

int32_t rows_in_band(const FrameResampleParams& p) {
  return p.patches.patch_size == 0 ? kPlanarBandRows : p.patches.patch_size;
}

int32_t num_bands(const FrameResampleParams& p) { return (p.out_h + rows_in_band(p) - 1) / rows_in_band(p); }

// Frames whose pixels share an output row.
int64_t frames_in_item(const FrameResampleParams& p) {
  return p.patches.patch_size == 0 ? 1 : p.patches.temporal_patch_size;
}

int64_t element_bytes(const FrameResampleParams& p) { return bytes_of(p.type); }

int64_t output_bytes(const FrameResampleParams& p) {
  const int64_t slots = (p.num_frames + frames_in_item(p) - 1) / frames_in_item(p) * frames_in_item(p);
  return kChannels * int64_t{p.out_h} * p.out_w * slots * element_bytes(p);
}

const RowKernels& row_kernels() {
  static constexpr const RowKernels* kTables[] = ZOOMZERO_TABLES(kRowKernels);
  return *kTables[static_cast<int32_t>(cpu_capability())];
}

// Source rows that a band needs.
RowRange source_rows(const FrameResampleParams& p, int32_t band) {
  RowRange range{p.in_h, 0};
  const int32_t y0 = band * rows_in_band(p);
  for (int32_t y = y0; y < std::min(y0 + rows_in_band(p), p.out_h); ++y) {
    range.begin = std::min(range.begin, p.vertical.starts[y]);
    range.end = std::max(range.end, p.vertical.starts[y] + p.vertical.sizes[y]);
  }
  return range;
}

int64_t scratch_row_bytes(const FrameResampleParams& p) {
  return (int64_t{p.out_w} * kChannels + kRowSlack + 63) / 64 * 64;
}

// Resized rows of one frame, made a band at a time from top to bottom.
class FrameRows {
 public:
  FrameRows(const FrameResampleParams& p, const RowKernels& kernels)
      : p_(p), kernels_(kernels), row_bytes_(scratch_row_bytes(p)) {
    for (int32_t band = 0; band < num_bands(p); ++band) {
      const RowRange range = source_rows(p, band);
      capacity_ = std::max(capacity_, range.end - range.begin);
    }
    packed_bytes_ = std::max<int64_t>(p.in_w, p.horizontal.taps) * kChannels + kRowSlack;
    ring_.resize((capacity_ + kRowGroup) * row_bytes_);
    packed_.assign(kRowGroup * packed_bytes_, 0);
    row_pointers_.resize(p.vertical.taps);
  }

  // The rows of a band of frame slot `slot`, each scratch_row_bytes apart. Bands in order reuse what they share.
  void make_band(int64_t slot, int32_t band, uint8_t* out) {
    const RowRange needed = source_rows(p_, band);
    if (slot != slot_ || needed.begin > ready_.end || needed.begin < ready_.begin) {
      slot_ = slot;
      ready_.end = needed.begin;
    }
    ready_.begin = needed.begin;
    while (ready_.end < needed.end) fill_rows(needed.end);
    const int32_t y0 = band * rows_in_band(p_);
    for (int32_t y = y0; y < std::min(y0 + rows_in_band(p_), p_.out_h); ++y, out += row_bytes_) {
      const int32_t num_rows = p_.vertical.sizes[y];
      for (int32_t k = 0; k < num_rows; ++k) row_pointers_[k] = ring_row(p_.vertical.starts[y] + k);
      kernels_.vertical(row_pointers_.data(), p_.vertical.weights + int64_t{y} * p_.vertical.taps, num_rows,
                        p_.vertical.precision, out, int64_t{p_.out_w} * kChannels);
    }
  }

 private:
  uint8_t* ring_row(int32_t source_row) { return ring_.data() + (source_row % capacity_) * row_bytes_; }

  // Horizontal pass of the next kRowGroup source rows (fewer before `end`: the spare outputs go to dump rows).
  void fill_rows(int32_t end) {
    const int64_t frame = p_.frame_indices == nullptr ? slot_ : p_.frame_indices[slot_];
    const uint8_t* source[kRowGroup];
    uint8_t* out[kRowGroup];
    const int32_t count = std::min(kRowGroup, end - ready_.end);
    for (int32_t r = 0; r < kRowGroup; ++r) {
      source[r] = r < count ? packed_row(frame, ready_.end + r, r) : source[count - 1];
      out[r] = r < count ? ring_row(ready_.end + r) : ring_.data() + (capacity_ + r) * row_bytes_;
    }
    kernels_.horizontal(source, p_.horizontal, p_.out_w, out);
    ready_.end += count;
  }

  // The source row as packed RGB that may be read past its end: itself, or a copy where it is strided, short or the
  // last.
  const uint8_t* packed_row(int64_t frame, int32_t row, int32_t r) {
    const uint8_t* source = p_.frames + frame * p_.stride_frame + row * p_.stride_row;
    const int64_t num_bytes = int64_t{p_.in_w} * kChannels;
    const bool packed = p_.stride_channel == 1 && p_.stride_pixel == kChannels;
    const bool followed = row + 1 < p_.in_h && p_.stride_row >= num_bytes && num_bytes >= kRowSlack;
    if (packed && followed && p_.in_w >= p_.horizontal.taps) return source;
    uint8_t* copy = packed_.data() + r * packed_bytes_;
    if (packed) {
      std::memcpy(copy, source, num_bytes);
      return copy;
    }
    for (int64_t x = 0; x < p_.in_w; ++x) {
      for (int64_t c = 0; c < kChannels; ++c)
        copy[x * kChannels + c] = source[x * p_.stride_pixel + c * p_.stride_channel];
    }
    return copy;
  }

  const FrameResampleParams& p_;
  const RowKernels& kernels_;
  int64_t row_bytes_;
  int64_t packed_bytes_ = 0;
  int32_t capacity_ = 1;
  int64_t slot_ = -1;
  RowRange ready_{0, 0};  // source rows of frame slot_ that the ring holds
  std::vector<uint8_t> ring_, packed_;
  std::vector<const uint8_t*> row_pointers_;
};

// A thread's work: rings for the frames of a temporal patch, one band of their finished rows, and the output row in the
// making.
class BandWorker {
 public:
  BandWorker(const FrameResampleParams& p, const RowKernels& kernels)
      : p_(p), kernels_(kernels), band_bytes_(rows_in_band(p) * scratch_row_bytes(p)) {
    frames_.reserve(frames_in_item(p));
    for (int64_t i = 0; i < frames_in_item(p); ++i) frames_.emplace_back(p, kernels);
    finished_.resize(frames_in_item(p) * band_bytes_);
    const int64_t ps = p.patches.patch_size;
    const int64_t elements = ps == 0 ? p.out_w : frames_in_item(p) * ps * ps;
    line_.resize(kChannels * elements * element_bytes(p) + kRowSlack);
    stream_ = output_bytes(p) >= kStreamBytes;
  }

  void process(int64_t item) {
    const int64_t first_slot = item / num_bands(p_) * frames_in_item(p_);
    const int32_t band = static_cast<int32_t>(item % num_bands(p_));
    const int64_t present = std::min(frames_in_item(p_), p_.num_frames - first_slot);
    for (int64_t i = 0; i < present; ++i) {
      frames_[i].make_band(first_slot + i, band, finished_.data() + i * band_bytes_);
    }
    const int32_t y0 = band * rows_in_band(p_);
    if (p_.patches.patch_size == 0) {
      for (int32_t y = y0; y < std::min(y0 + rows_in_band(p_), p_.out_h); ++y) store_planar_row(first_slot, y, y - y0);
    } else {
      for (int32_t x = 0; x < p_.out_w; x += p_.patches.patch_size) store_patch(first_slot, present, y0, x);
    }
  }

 private:
  // One patch of all frames of the item; the last frame of the clip fills what is left of its temporal patch.
  void store_patch(int64_t first_slot, int64_t present, int32_t y, int32_t x) {
    const int64_t ps = p_.patches.patch_size, tp = p_.patches.temporal_patch_size;
    for (int64_t i = 0; i < tp; ++i) {
      const uint8_t* rgb = finished_.data() + std::min(i, present - 1) * band_bytes_ + int64_t{x} * kChannels;
      uint8_t* out = line_.data() + i * ps * ps * element_bytes(p_);
      normalise_(rgb, {ps, ps, scratch_row_bytes(p_), tp * ps * ps}, p_, out);
    }
    const int64_t first = output_run(p_, first_slot, y, x).first;
    copy_out_(output(first), line_.data(), kChannels * tp * ps * ps * element_bytes(p_), stream_);
  }

  void store_planar_row(int64_t slot, int32_t y, int32_t row_in_band) {
    const uint8_t* rgb = finished_.data() + row_in_band * scratch_row_bytes(p_);
    normalise_(rgb, {1, p_.out_w, 0, p_.out_w}, p_, line_.data());
    const OutputRun run = output_run(p_, slot, y, 0);
    const int64_t row_bytes = p_.out_w * element_bytes(p_);
    for (int32_t c = 0; c < kChannels; ++c) {
      copy_out_(output(run.first + c * run.channel_stride), line_.data() + c * row_bytes, row_bytes, stream_);
    }
  }

  uint8_t* output(int64_t element) const { return static_cast<uint8_t*>(p_.output) + element * element_bytes(p_); }

  const FrameResampleParams& p_;
  const RowKernels& kernels_;
  Normalise normalise_ = kernels_.normalise[static_cast<int32_t>(p_.type)];
  CopyOut copy_out_ = copy_out_function();
  int64_t band_bytes_;
  bool stream_ = false;
  std::vector<FrameRows> frames_;
  std::vector<uint8_t> finished_;  // [frame of the item][row of the band], scratch_row_bytes each
  std::vector<uint8_t> line_;      // normalised elements in output order, of one patch or of one row
};

// A work item is one band of output rows (a row of patches) of the frames of one temporal patch.
int64_t num_work_items(const FrameResampleParams& p) {
  return (p.num_frames + frames_in_item(p) - 1) / frames_in_item(p) * num_bands(p);
}

}  // namespace

int32_t frame_resample_cpu_taps_multiple() { return row_kernels().taps_multiple; }

void frame_resample_cpu(const FrameResampleParams& p, int32_t num_threads) {
  advise_huge_pages(p.output, static_cast<size_t>(output_bytes(p)));
  parallel_for(num_work_items(p), 1, num_threads, [&p](int64_t begin, int64_t end) {
    BandWorker worker(p, row_kernels());
    for (int64_t item = begin; item < end; ++item) worker.process(item);
  });
}

}  // namespace zoomzero
