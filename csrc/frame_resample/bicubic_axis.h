// Fixed-point weights of antialiased bicubic resampling along one axis.
//
// The same integers as Pillow's and torch's uint8 paths (the formula and the choice of the precision come from there),
// so that results are equal to theirs to the last bit: centre = scale (i + 1/2), support = 2 max(scale, 1), w =
// cubic((j - centre + 1/2) / max(scale, 1)) with a = -1/2, normalised to sum 1, times 2^precision, rounded to int16.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "frame_resample/params.h"

namespace zoomzero {

struct BicubicAxis {
  std::vector<int32_t> starts;
  std::vector<int32_t> sizes;
  std::vector<int16_t> weights;
  int32_t taps = 0;
  int32_t precision = 0;
};

// Keys' cubic convolution with a = -1/2, what antialiased resizers use (plain bicubic uses -3/4).
inline double bicubic_filter(double x) {
  constexpr double kA = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((kA + 2.0) * x - (kA + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * kA;
  return 0.0;
}

// taps_multiple: rows of the weight table are padded with zeros to a multiple of this, for vector loads. Above 1,
// starts near the far edge move back (their weights preceded by zeros) so that all taps lie inside the input wherever
// it is long enough.
inline BicubicAxis make_bicubic_axis(int64_t in_size, int64_t out_size, int32_t taps_multiple) {
  constexpr double kFilterWidth = 4.0;
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  const double stretch = std::max(scale, 1.0);
  const double support = kFilterWidth * 0.5 * stretch;
  const int64_t max_taps = static_cast<int64_t>(std::ceil(support)) * 2 + 1;

  BicubicAxis axis;
  axis.taps = static_cast<int32_t>((max_taps + taps_multiple - 1) / taps_multiple * taps_multiple);
  axis.starts.resize(out_size);
  axis.sizes.resize(out_size);
  axis.weights.assign(static_cast<size_t>(out_size) * axis.taps, 0);
  std::vector<double> exact(static_cast<size_t>(out_size) * max_taps, 0.0);
  double largest = 0.0;
  for (int64_t i = 0; i < out_size; ++i) {
    const double centre = scale * (static_cast<double>(i) + 0.5);
    const int64_t start = std::max<int64_t>(static_cast<int64_t>(centre - support + 0.5), 0);
    const int64_t end = std::min<int64_t>(static_cast<int64_t>(centre + support + 0.5), in_size);
    const int64_t size = std::clamp<int64_t>(end - start, 0, max_taps);
    double* row = exact.data() + i * max_taps;
    double total = 0.0;
    for (int64_t k = 0; k < size; ++k) {
      row[k] = bicubic_filter((static_cast<double>(k + start) - centre + 0.5) / stretch);
      total += row[k];
    }
    for (int64_t k = 0; k < size; ++k) {
      if (total != 0.0) row[k] /= total;
      largest = std::max(largest, row[k]);
    }
    axis.starts[i] = static_cast<int32_t>(start);
    axis.sizes[i] = static_cast<int32_t>(size);
  }
  // The largest precision at which every weight still fits an int16; 22 bits leave room for 255 * sum in an int32.
  for (axis.precision = 0; axis.precision < 22; ++axis.precision) {
    if (static_cast<int64_t>(0.5 + largest * static_cast<double>(int64_t{1} << (axis.precision + 1))) >= (1 << 15))
      break;
  }
  const double one = static_cast<double>(int64_t{1} << axis.precision);
  for (int64_t i = 0; i < out_size; ++i) {
    const int64_t past_end = taps_multiple > 1 ? axis.starts[i] + axis.taps - in_size : 0;
    const int32_t moved = static_cast<int32_t>(std::clamp<int64_t>(past_end, 0, axis.starts[i]));
    for (int64_t k = 0; k < axis.sizes[i]; ++k) {
      const double weight = exact[i * max_taps + k] * one;
      axis.weights[i * axis.taps + moved + k] = static_cast<int16_t>(weight < 0.0 ? weight - 0.5 : weight + 0.5);
    }
    axis.starts[i] -= moved;
    axis.sizes[i] += moved;
  }
  return axis;
}

}  // namespace zoomzero
