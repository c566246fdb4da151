// token_resample between Python and the kernels. Memory comes as addresses, checked in Python.
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "bindings.h"
#include "common/addresses.h"
#include "common/cuda.h"
#include "token_resample/op.h"

namespace zoomzero {
namespace {

// tables: slices, int64 [num_slices, 7] in the order of TokenSlice, and the slice of each output token, int32, or 0 for
// the CPU; counts: slices, output tokens, output grid rows, channels.
TokenResampleParams token_resample_params(Address in, Address out, const std::array<Address, 2>& tables,
                                          const std::array<int64_t, 4>& counts, ElementType type, bool backward) {
  static_assert(sizeof(TokenSlice) == 7 * sizeof(int64_t));
  const auto& [num_slices, num_out, num_grid_rows, dim] = counts;
  return {pointer<const void>(in),
          pointer<void>(out),
          pointer<const TokenSlice>(tables[0]),
          pointer<const int32_t>(tables[1]),
          num_slices,
          num_out,
          num_grid_rows,
          dim,
          backward,
          type};
}

#ifdef ZOOMZERO_WITH_CUDA
void launch_on_cuda(const TokenResampleParams& params, int32_t device, Address stream) {
  check_cuda(cudaSetDevice(device), "token_resample");
  check_cuda(token_resample_cuda(params, stream_at(stream)), "token_resample");
}
#endif

// What a launch would pass to the CUDA kernel: the bytes of its parameter, blocks, threads of a block, and whether it
// is the kernel of vectors. For tools that run the compiled kernel without a GPU.
std::tuple<pybind11::bytes, int64_t, int32_t, bool> token_resample_launch(const TokenResampleParams& params) {
  const TokenResampleLaunch launch = plan_token_resample_cuda(params);
  return {pybind11::bytes(reinterpret_cast<const char*>(&params), sizeof(params)), launch.blocks, launch.threads,
          launch.vectors};
}

}  // namespace

void bind_token_resample(pybind11::module_& m) {
  pybind11::class_<TokenResampleParams>(m, "TokenResampleParams").def(pybind11::init(&token_resample_params));
  m.def("token_resample_cpu", &token_resample_cpu, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("token_resample_launch", &token_resample_launch);
#ifdef ZOOMZERO_WITH_CUDA
  m.def("token_resample_cuda", &launch_on_cuda);
#endif
}

}  // namespace zoomzero
