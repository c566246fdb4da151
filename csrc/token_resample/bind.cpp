// token_resample between Python and the kernels. Memory comes as addresses, checked in Python.
#include <pybind11/stl.h>

#include <array>

#include "bindings.h"
#include "common/addresses.h"
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

}  // namespace

void bind_token_resample(pybind11::module_& m) {
  pybind11::class_<TokenResampleParams>(m, "TokenResampleParams").def(pybind11::init(&token_resample_params));
  m.def("token_resample_cpu", &token_resample_cpu, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("token_resample_launch", &token_resample_launch);
}

}  // namespace zoomzero
