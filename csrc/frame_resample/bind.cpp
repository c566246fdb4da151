// frame_resample between Python and the kernels. Memory comes as addresses, checked in Python.
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "bindings.h"
#include "common/addresses.h"
#include "frame_resample/op.h"

namespace zoomzero {
namespace {

template <typename T>
pybind11::bytes bytes_of_values(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// starts [out] int32, sizes [out] int32, weights [out, taps] int16, all as bytes; taps; precision.
std::tuple<pybind11::bytes, pybind11::bytes, pybind11::bytes, int32_t, int32_t> bicubic_axis(int64_t in_size,
                                                                                             int64_t out_size,
                                                                                             int32_t taps_multiple) {
  const BicubicAxis axis = make_bicubic_axis(in_size, out_size, taps_multiple);
  return {bytes_of_values(axis.starts), bytes_of_values(axis.sizes), bytes_of_values(axis.weights), axis.taps,
          axis.precision};
}

AxisView axis_view(Address starts, Address sizes, Address weights, int32_t taps, int32_t precision) {
  return {pointer<const int32_t>(starts), pointer<const int32_t>(sizes), pointer<const int16_t>(weights), taps,
          precision};
}

// Frames as they lie in memory: uint8 [N, H, W, 3] with strides in bytes.
struct FrameArray {
  Address data;
  std::array<int64_t, 4> shape;
  std::array<int64_t, 4> strides;
};

FrameArray frame_array(Address data, const std::array<int64_t, 4>& shape, const std::array<int64_t, 4>& strides) {
  return {data, shape, strides};
}

// An output = value * scale + shift by channel.
using Normalisation = std::array<std::array<double, kChannels>, 2>;

// indices: int64 [num_frames], or 0 for all frames in order; patches: sides (patch, merge, temporal patch), the first 0
// for planes.
FrameResampleParams frame_resample_params(const FrameArray& frames, Address indices, int64_t num_frames,
                                          const std::array<AxisView, 2>& axes, const std::array<int32_t, 2>& size,
                                          const Normalisation& normalisation, const std::array<int32_t, 3>& patches,
                                          const std::tuple<Address, ElementType>& output) {
  FrameResampleParams params{};
  params.frames = pointer<const uint8_t>(frames.data);
  params.stride_frame = frames.strides[0];
  params.stride_row = frames.strides[1];
  params.stride_pixel = frames.strides[2];
  params.stride_channel = frames.strides[3];
  params.num_source_frames = frames.shape[0];
  params.frame_indices = pointer<const int64_t>(indices);
  params.num_frames = num_frames;
  params.in_h = static_cast<int32_t>(frames.shape[1]);
  params.in_w = static_cast<int32_t>(frames.shape[2]);
  params.out_h = size[0];
  params.out_w = size[1];
  params.vertical = axes[0];
  params.horizontal = axes[1];
  for (size_t c = 0; c < kChannels; ++c) {
    params.scale[c] = static_cast<float>(normalisation[0][c]);
    params.shift[c] = static_cast<float>(normalisation[1][c]);
  }
  params.patches = {patches[0], patches[1], patches[2]};
  params.output = pointer<void>(std::get<0>(output));
  params.type = std::get<1>(output);
  return params;
}

}  // namespace

void bind_frame_resample(pybind11::module_& m) {
  pybind11::class_<AxisView>(m, "AxisView").def(pybind11::init(&axis_view));
  pybind11::class_<FrameArray>(m, "FrameArray").def(pybind11::init(&frame_array));
  pybind11::class_<FrameResampleParams>(m, "FrameResampleParams").def(pybind11::init(&frame_resample_params));
  m.def("bicubic_axis", &bicubic_axis);
  m.def("frame_resample_cpu_taps_multiple", &frame_resample_cpu_taps_multiple);
  m.def("frame_resample_cpu", &frame_resample_cpu, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("frame_resample_launch", &frame_resample_launch);
}

}  // namespace zoomzero
