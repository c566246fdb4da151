// The pass over rows of logits between torch and the CPU kernels: fills in the parameters and spreads rows over threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>

#include "bindings.h"
#include "common/huge_pages.h"
#include "policy_rows/op.h"

namespace zoomzero {
namespace {

using MaybeTensor = std::optional<at::Tensor>;

LogitType logit_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return LogitType::kFloat32;
    case at::kBFloat16: return LogitType::kBFloat16;
    case at::kHalf: return LogitType::kFloat16;
    default: TORCH_CHECK(false, "policy_rows: no CPU kernel reads logits of ", type);
  }
}

template <typename T>
const T* per_token(const at::Tensor& tensor, int64_t count, const char* name) {
  TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous() && tensor.numel() == count, "policy_rows: ", name,
              " must be contiguous and hold ", count, " values, got ", tensor.sizes());
  return tensor.const_data_ptr<T>();
}

const float* optional_values(const MaybeTensor& tensor, int64_t count, const char* name) {
  return tensor ? per_token<float>(*tensor, count, name) : nullptr;
}

float* output(const at::Tensor& tensor, int64_t count, const char* name) {
  per_token<float>(tensor, count, name);
  return tensor.mutable_data_ptr<float>();
}

LogitRows logit_rows(const at::Tensor& logits, const at::Tensor& token_ids, const at::Tensor& mask, double temperature) {
  TORCH_CHECK(logits.dim() == 3 && logits.is_cpu() && (logits.size(2) == 1 || logits.stride(2) == 1),
              "policy_rows: logits must be a CPU tensor [B, T, V] with unit stride in V, got strides ", logits.strides());
  const int64_t count = logits.size(0) * logits.size(1);
  return {logits.const_data_ptr(),
          logit_type(logits.scalar_type()),
          logits.stride(0),
          logits.stride(1),
          logits.size(1),
          logits.size(2),
          per_token<int64_t>(token_ids, count, "token_ids"),
          per_token<bool>(mask, count, "mask"),
          static_cast<float>(1.0 / temperature)};
}

GradientRows gradient_rows(const MaybeTensor& grad, const at::Tensor& logits) {
  if (!grad) return {nullptr, 0, 0};
  TORCH_CHECK(grad->sizes() == logits.sizes() && grad->scalar_type() == logits.scalar_type() &&
                  (grad->size(2) == 1 || grad->stride(2) == 1),
              "policy_rows: grad must be like the logits with unit stride in V, got strides ", grad->strides());
  void* data = grad->mutable_data_ptr();
  // A fresh gradient: its page faults would cost more than the arithmetic.
  if (data != logits.const_data_ptr() && grad->is_contiguous()) advise_huge_pages(data, grad->nbytes());
  return {data, grad->stride(0), grad->stride(1)};
}

// Threads take rows one by one: masked and clipped rows are cheap, so equal ranges would not be equal work.
template <typename Function>
void for_each_row(int64_t count, const Function& function) {
  const pybind11::gil_scoped_release no_gil;
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), count), 1, [&](int64_t, int64_t) {
    for (int64_t row = next++; row < count; row = next++) function(row);
  });
}

// outputs float32 [B, T], zeroed: loss, logps, entropy, kl, clipped; numbers: beta, clip_low, clip_high,
// kl_clamp, unbiased_kl (0 or 1).
void policy_rows(const at::Tensor& logits, const at::Tensor& token_ids, const at::Tensor& mask,
                 const at::Tensor& advantages, const at::Tensor& weights, const MaybeTensor& old_logps,
                 const MaybeTensor& ref_logps, double temperature, const std::array<double, 5>& numbers,
                 const std::array<at::Tensor, 5>& outputs, const MaybeTensor& grad) {
  const int64_t count = logits.size(0) * logits.size(1);
  PolicyRows params{};
  params.rows = logit_rows(logits, token_ids, mask, temperature);
  params.advantages = per_token<float>(advantages, count, "advantages");
  params.weights = per_token<float>(weights, count, "weights");
  params.old_logps = optional_values(old_logps, count, "old_logps");
  params.ref_logps = optional_values(ref_logps, count, "ref_logps");
  params.beta = static_cast<float>(numbers[0]);
  params.clip_low = static_cast<float>(numbers[1]);
  params.clip_high = static_cast<float>(numbers[2]);
  params.kl_clamp = static_cast<float>(numbers[3]);
  params.unbiased_kl = numbers[4] != 0;
  params.loss = output(outputs[0], count, "loss");
  params.logps = output(outputs[1], count, "logps");
  params.entropy = output(outputs[2], count, "entropy");
  params.kl = output(outputs[3], count, "kl");
  params.clipped = output(outputs[4], count, "clipped");
  params.grad = gradient_rows(grad, logits);
  const RowMath& math = row_math();
  for_each_row(count, [&](int64_t row) { policy_row_cpu(params, math, row); });
}

// logps, entropy [B, T] and normaliser [B, T, 2], float32, zeroed.
void logp_rows(const at::Tensor& logits, const at::Tensor& token_ids, const at::Tensor& mask, double temperature,
               const at::Tensor& logps, const at::Tensor& entropy, const at::Tensor& normaliser) {
  const int64_t count = logits.size(0) * logits.size(1);
  const LogpRows params{logit_rows(logits, token_ids, mask, temperature), output(logps, count, "logps"),
                        output(entropy, count, "entropy"), output(normaliser, 2 * count, "normaliser")};
  const RowMath& math = row_math();
  for_each_row(count, [&](int64_t row) { logp_row_cpu(params, math, row); });
}

void logp_rows_backward(const at::Tensor& logits, const at::Tensor& token_ids, const at::Tensor& mask,
                        double temperature, const at::Tensor& entropy, const at::Tensor& normaliser,
                        const at::Tensor& grad_logps, const MaybeTensor& grad_entropy, const at::Tensor& grad) {
  const int64_t count = logits.size(0) * logits.size(1);
  const LogpRowsBackward params{logit_rows(logits, token_ids, mask, temperature),
                                per_token<float>(entropy, count, "entropy"),
                                per_token<float>(normaliser, 2 * count, "normaliser"),
                                per_token<float>(grad_logps, count, "grad_logps"),
                                optional_values(grad_entropy, count, "grad_entropy"),
                                gradient_rows(grad, logits)};
  const RowMath& math = row_math();
  for_each_row(count, [&](int64_t row) { logp_row_backward_cpu(params, math, row); });
}

}  // namespace

void bind_policy_rows(pybind11::module_& m) {
  m.def("policy_rows", &policy_rows);
  m.def("logp_rows", &logp_rows);
  m.def("logp_rows_backward", &logp_rows_backward);
  m.def("policy_rows_cpu_capability", [] { return row_math().name; });
}

}  // namespace zoomzero
