// token_resample between torch and the kernels: guards the device, launches, checks the status.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <tuple>

#include <torch/csrc/utils/pybind.h>
#include "bindings.h"
#include "common/huge_pages.h"
#include "token_resample/op.h"

#ifdef ZOOMZERO_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace zoomzero {
namespace {

TokenType token_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return TokenType::kFloat32;
    case at::kBFloat16:
      return TokenType::kBFloat16;
    case at::kHalf:
      return TokenType::kFloat16;
    default:
      TORCH_CHECK(false, "token_resample: no kernel reads ", type);
  }
}

// slices int64 [S, 7] in the order of TokenSlice, on the device of the tokens.
TokenResampleParams make_params(const at::Tensor& in, const at::Tensor& out, const at::Tensor& slices, bool backward) {
  static_assert(sizeof(TokenSlice) == 7 * sizeof(int64_t));
  TORCH_CHECK(in.is_contiguous() && out.is_contiguous() && slices.is_contiguous());
  TORCH_CHECK(in.device() == out.device() && in.device() == slices.device() && in.scalar_type() == out.scalar_type());
  TORCH_CHECK(slices.dim() == 2 && slices.size(1) == 7 && slices.scalar_type() == at::kLong);
  return {in.const_data_ptr(),
          out.mutable_data_ptr(),
          static_cast<const TokenSlice*>(slices.const_data_ptr()),
          slices.size(0),
          out.size(0),
          out.size(1),
          backward,
          token_type(in.scalar_type())};
}

void launch_cuda([[maybe_unused]] const TokenResampleParams& params, [[maybe_unused]] const at::Tensor& in) {
#ifdef ZOOMZERO_WITH_CUDA
  const c10::cuda::CUDAGuard guard(in.device());
  C10_CUDA_CHECK(token_resample_cuda(params, c10::cuda::getCurrentCUDAStream().stream()));
#else
  TORCH_CHECK(false, "token_resample: this build of zoomzero has no CUDA kernels");
#endif
}

// num_grid_rows: rows of all output grids together. All arguments are checked by the caller in Python.
void token_resample(const at::Tensor& in, const at::Tensor& out, const at::Tensor& slices, int64_t num_grid_rows,
                    bool backward) {
  const TokenResampleParams params = make_params(in, out, slices, backward);
  if (out.numel() == 0) return;
  if (in.is_cuda()) return launch_cuda(params, in);
  const pybind11::gil_scoped_release no_gil;
  advise_huge_pages(params.out, out.nbytes());
  at::parallel_for(0, num_grid_rows, 1,
                   [&params](int64_t begin, int64_t end) { token_resample_cpu(params, begin, end); });
}

// The bytes of the parameter that a launch would pass to the CUDA kernel, for tools that run the compiled kernel
// without a GPU.
pybind11::bytes token_resample_launch(const at::Tensor& in, const at::Tensor& out, const at::Tensor& slices,
                                      bool backward) {
  const TokenResampleParams params = make_params(in, out, slices, backward);
  return pybind11::bytes(reinterpret_cast<const char*>(&params), sizeof(params));
}

}  // namespace

void bind_token_resample(pybind11::module_& m) {
  m.def("token_resample", &token_resample);
  m.def("token_resample_launch", &token_resample_launch);
}

}  // namespace zoomzero
