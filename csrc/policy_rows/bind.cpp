// The pass over rows of logits between Python and the CPU kernels. Memory comes as addresses, checked in Python.
#include <pybind11/stl.h>

#include <array>
#include <bit>
#include <string>

#include "bindings.h"
#include "common/addresses.h"
#include "policy_rows/op.h"

namespace zoomzero {
namespace {

constexpr size_t kNumOptions = sizeof(PolicyOptions) / sizeof(float);

PolicyOptions options_of(const pybind11::tuple& values) {
  if (values.size() != kNumOptions) {
    throw pybind11::value_error("policy_rows: options must hold " + std::to_string(kNumOptions) + " numbers, got " +
                                std::to_string(values.size()) + "; rebuild zoomzero, whose Python and C++ differ");
  }
  std::array<float, kNumOptions> numbers;
  for (size_t i = 0; i < kNumOptions; ++i) numbers[i] = static_cast<float>(values[i].cast<double>());
  return std::bit_cast<PolicyOptions>(numbers);
}

LogitRows logit_rows(Address logits, ElementType type, const std::array<int64_t, 3>& shape,
                     const std::array<int64_t, 2>& strides, Address token_ids, Address mask, double inv_temperature) {
  return {pointer<const void>(logits),
          type,
          shape[0],
          shape[1],
          shape[2],
          strides[0],
          strides[1],
          pointer<const int64_t>(token_ids),
          pointer<const bool>(mask),
          static_cast<float>(inv_temperature)};
}

GradientRows gradient_rows(Address data, const std::array<int64_t, 2>& strides) {
  return {pointer<void>(data), strides[0], strides[1]};
}

// tokens: advantages, weights, old_logps, ref_logps, factors, entropy_weights; outputs: loss, logps, entropy, kl,
// clipped. All float32 [B, T].
void policy_rows(const LogitRows& rows, const std::array<Address, 6>& tokens, const pybind11::tuple& options,
                 const std::array<Address, 5>& outputs, const GradientRows& grad, int32_t num_threads) {
  const PolicyRows params{rows,
                          options_of(options),
                          pointer<const float>(tokens[0]),
                          pointer<const float>(tokens[1]),
                          pointer<const float>(tokens[2]),
                          pointer<const float>(tokens[3]),
                          pointer<const float>(tokens[4]),
                          pointer<const float>(tokens[5]),
                          pointer<float>(outputs[0]),
                          pointer<float>(outputs[1]),
                          pointer<float>(outputs[2]),
                          pointer<float>(outputs[3]),
                          pointer<float>(outputs[4]),
                          grad};
  const pybind11::gil_scoped_release no_gil;
  policy_rows_cpu(params, num_threads);
}

// logps, entropy [B, T] and normaliser [B, T, 2], float32.
void logp_rows(const LogitRows& rows, Address logps, Address entropy, Address normaliser, int32_t num_threads) {
  const LogpRows params{rows, pointer<float>(logps), pointer<float>(entropy), pointer<float>(normaliser)};
  const pybind11::gil_scoped_release no_gil;
  logp_rows_cpu(params, num_threads);
}

// statistics: entropy, normaliser; slopes: gradients of the log-probabilities and, unless 0, of the entropies.
void logp_rows_backward(const LogitRows& rows, const std::array<Address, 2>& statistics,
                        const std::array<Address, 2>& slopes, const GradientRows& grad, int32_t num_threads) {
  const LogpRowsBackward params{rows,
                                pointer<const float>(statistics[0]),
                                pointer<const float>(statistics[1]),
                                pointer<const float>(slopes[0]),
                                pointer<const float>(slopes[1]),
                                grad};
  const pybind11::gil_scoped_release no_gil;
  logp_rows_backward_cpu(params, num_threads);
}

}  // namespace

void bind_policy_rows(pybind11::module_& m) {
  pybind11::class_<LogitRows>(m, "LogitRows").def(pybind11::init(&logit_rows));
  pybind11::class_<GradientRows>(m, "GradientRows").def(pybind11::init(&gradient_rows));
  m.def("policy_rows", &policy_rows);
  m.def("logp_rows", &logp_rows);
  m.def("logp_rows_backward", &logp_rows_backward);
}

}  // namespace zoomzero
