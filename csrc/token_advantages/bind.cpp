// token_advantages between Python and the CPU loops. Memory comes as addresses, checked in Python.
#include <pybind11/stl.h>

#include <array>

#include "bindings.h"
#include "common/addresses.h"
#include "token_advantages/op.h"

namespace zoomzero {
namespace {

// inputs: rewards, credit float64; segments uint8, mask bool; group_ids int64; shape: B, T, R, S; advantages float32.
// Returns a segment of a valid token that is >= S, if there is one, else -1.
int32_t token_advantages(const std::array<Address, 5>& inputs, const std::array<int64_t, 4>& shape,
                         int32_t normalization, double eps, Address advantages, int32_t num_threads) {
  const auto& [batch, num_tokens, num_rewards, num_segments] = shape;
  const TokenAdvantages params{pointer<const double>(inputs[0]),
                               pointer<const double>(inputs[1]),
                               pointer<const uint8_t>(inputs[2]),
                               pointer<const bool>(inputs[3]),
                               batch,
                               num_tokens,
                               num_rewards,
                               num_segments,
                               static_cast<Normalization>(normalization),
                               eps,
                               pointer<const int64_t>(inputs[4]),
                               pointer<float>(advantages)};
  const pybind11::gil_scoped_release no_gil;
  return token_advantages_cpu(params, num_threads);
}

}  // namespace

void bind_token_advantages(pybind11::module_& m) { m.def("token_advantages_cpu", &token_advantages); }

}  // namespace zoomzero
