// frame_resample between torch and the kernels: allocates, guards the device, launches, checks the status.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>

#include <torch/csrc/utils/pybind.h>
#include "bindings.h"
#include "frame_resample/op.h"
#include "common/huge_pages.h"

#ifdef ZOOMZERO_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#endif

namespace zoomzero {
namespace {

// starts [out] int32, sizes [out] int32, weights [out, taps] int16, precision.
using AxisTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, int64_t>;

template <typename T>
at::Tensor copy_to_tensor(const std::vector<T>& values, at::IntArrayRef shape, at::ScalarType type) {
  at::Tensor tensor = at::empty(shape, type);
  std::memcpy(tensor.mutable_data_ptr(), values.data(), values.size() * sizeof(T));
  return tensor;
}

// size, horizontal and vertical tables, scale, shift, (patch, merge, temporal patch) sizes with patch size 0 for
// planes.
using Options = std::tuple<std::array<int64_t, 2>, AxisTensors, AxisTensors, std::array<double, kChannels>,
                           std::array<double, kChannels>, std::array<int32_t, 3>>;

AxisTensors bicubic_axis(int64_t in_size, int64_t out_size, int64_t taps_multiple) {
  const BicubicAxis axis = make_bicubic_axis(in_size, out_size, static_cast<int32_t>(taps_multiple));
  return {copy_to_tensor(axis.starts, {out_size}, at::kInt), copy_to_tensor(axis.sizes, {out_size}, at::kInt),
          copy_to_tensor(axis.weights, {out_size, axis.taps}, at::kShort), axis.precision};
}

AxisView view_of(const AxisTensors& axis, const at::Tensor& frames) {
  const auto& [starts, sizes, weights, precision] = axis;
  TORCH_CHECK(starts.device() == frames.device(), "frame_resample: axis tables must be on the frames' device");
  return {starts.const_data_ptr<int32_t>(), sizes.const_data_ptr<int32_t>(), weights.const_data_ptr<int16_t>(),
          static_cast<int32_t>(weights.size(1)), static_cast<int32_t>(precision)};
}

PixelType pixel_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return PixelType::kFloat32;
    case at::kBFloat16:
      return PixelType::kBFloat16;
    case at::kHalf:
      return PixelType::kFloat16;
    default:
      TORCH_CHECK(false, "frame_resample: no kernel writes ", type);
  }
}

void launch_cuda([[maybe_unused]] const FrameResampleParams& params, [[maybe_unused]] const at::Tensor& frames) {
#ifdef ZOOMZERO_WITH_CUDA
  const c10::cuda::CUDAGuard guard(frames.device());
  int num_processors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&num_processors, cudaDevAttrMultiProcessorCount, frames.get_device()));
  const FrameResampleLaunch launch = plan_frame_resample_cuda(params, num_processors);
  if (launch.shared_bytes == 0) {
    throw pybind11::value_error("frame_resample: on CUDA a side may shrink by a factor of about 200 at most, got " +
                                std::to_string(params.in_h) + "x" + std::to_string(params.in_w) + " to " +
                                std::to_string(params.out_h) + "x" + std::to_string(params.out_w) +
                                "; resize in two steps");
  }
  C10_CUDA_CHECK(frame_resample_cuda(params, launch, c10::cuda::getCurrentCUDAStream().stream()));
#else
  TORCH_CHECK(false, "frame_resample: this build of zoomzero has no CUDA kernels");
#endif
}

// frames uint8 [N, H, W, 3]; frame_indices int64 [n] or none; out contiguous. All checked by the caller in Python.
FrameResampleParams make_params(const at::Tensor& frames, const std::optional<at::Tensor>& frame_indices,
                                const at::Tensor& out, const Options& options) {
  const auto& [size, horizontal, vertical, scale, shift, patches] = options;
  TORCH_CHECK(frames.dim() == 4 && frames.size(3) == kChannels && frames.scalar_type() == at::kByte);
  TORCH_CHECK(out.is_contiguous() && out.device() == frames.device());
  FrameResampleParams params{};
  params.frames = frames.const_data_ptr<uint8_t>();
  params.stride_frame = frames.stride(0);
  params.stride_row = frames.stride(1);
  params.stride_pixel = frames.stride(2);
  params.stride_channel = frames.stride(3);
  params.num_source_frames = frames.size(0);
  params.frame_indices = frame_indices ? frame_indices->const_data_ptr<int64_t>() : nullptr;
  params.num_frames = frame_indices ? frame_indices->numel() : frames.size(0);
  params.in_h = static_cast<int32_t>(frames.size(1));
  params.in_w = static_cast<int32_t>(frames.size(2));
  params.out_h = static_cast<int32_t>(size[0]);
  params.out_w = static_cast<int32_t>(size[1]);
  params.horizontal = view_of(horizontal, frames);
  params.vertical = view_of(vertical, frames);
  for (int32_t c = 0; c < kChannels; ++c) {
    params.scale[c] = static_cast<float>(scale[c]);
    params.shift[c] = static_cast<float>(shift[c]);
  }
  params.patches = {patches[0], patches[1], patches[2]};
  params.type = pixel_type(out.scalar_type());
  params.output = out.mutable_data_ptr();
  return params;
}

void frame_resample(const at::Tensor& frames, const std::optional<at::Tensor>& frame_indices, const at::Tensor& out,
                    const Options& options) {
  const FrameResampleParams params = make_params(frames, frame_indices, out, options);
  if (out.numel() == 0) return;
  if (frames.is_cuda()) return launch_cuda(params, frames);
  const pybind11::gil_scoped_release no_gil;
  advise_huge_pages(params.output, out.nbytes());
  at::parallel_for(0, num_work_items(params), 1,
                   [&params](int64_t begin, int64_t end) { frame_resample_cpu(params, begin, end); });
}

// What a launch on a GPU of num_processors would pass to the CUDA kernel: the bytes of both parameters, the number of
// blocks and the bytes of shared memory. For tools that run the compiled kernel without a GPU.
std::tuple<pybind11::bytes, pybind11::bytes, int64_t, int64_t> frame_resample_launch(
    const at::Tensor& frames, const std::optional<at::Tensor>& frame_indices, const at::Tensor& out,
    const Options& options, int32_t num_processors) {
  const FrameResampleParams params = make_params(frames, frame_indices, out, options);
  const FrameResampleLaunch launch = plan_frame_resample_cuda(params, num_processors);
  return {pybind11::bytes(reinterpret_cast<const char*>(&params), sizeof(params)),
          pybind11::bytes(reinterpret_cast<const char*>(&launch), sizeof(launch)),
          params.num_frames * launch.num_strips * launch.num_blocks_y, launch.shared_bytes};
}

}  // namespace

void bind_frame_resample(pybind11::module_& m) {
  m.def("bicubic_axis", &bicubic_axis);
  m.def("frame_resample_cpu_taps_multiple", &frame_resample_cpu_taps_multiple);
  m.def("frame_resample", &frame_resample);
  m.def("frame_resample_launch", &frame_resample_launch);
}

}  // namespace zoomzero
