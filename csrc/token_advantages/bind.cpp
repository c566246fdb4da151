// token_advantages between torch and the CPU loops: orders responses by group and spreads the work over threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include <torch/csrc/utils/pybind.h>
#include "bindings.h"
#include "token_advantages/op.h"

namespace zoomzero {
namespace {

// rewards [B, R], credit [R, S] float64; segments uint8, mask bool [B, T]; group_ids int64 [B]; advantages float32 [B, T].
// All contiguous. Returns a segment of a valid token that is >= S, if there is one, else -1.
int32_t token_advantages(const at::Tensor& rewards, const at::Tensor& segments, const at::Tensor& credit,
                         const at::Tensor& group_ids, const at::Tensor& mask, int32_t normalization, double eps,
                         const at::Tensor& advantages) {
  for (const at::Tensor* tensor : {&rewards, &segments, &credit, &group_ids, &mask, &advantages}) {
    TORCH_CHECK(tensor->is_cpu() && tensor->is_contiguous(), "token_advantages: tensors must be contiguous on the CPU");
  }
  TORCH_CHECK(credit.size(1) <= 256, "token_advantages: segments are uint8, got credit for ", credit.size(1));
  const int64_t batch = segments.size(0);
  const int64_t cells = batch * credit.size(1);
  const int64_t* groups = group_ids.const_data_ptr<int64_t>();
  std::vector<int64_t> members(static_cast<size_t>(batch));
  std::iota(members.begin(), members.end(), int64_t{0});
  // By id, then by position: the order of the sums, and with it the last bit, depends on the inputs alone.
  std::sort(members.begin(), members.end(),
            [groups](int64_t a, int64_t b) { return groups[a] != groups[b] ? groups[a] < groups[b] : a < b; });
  std::vector<double> scratch(static_cast<size_t>(2 * cells));
  const TokenAdvantages params{rewards.const_data_ptr<double>(),
                               credit.const_data_ptr<double>(),
                               segments.const_data_ptr<uint8_t>(),
                               mask.const_data_ptr<bool>(),
                               batch,
                               segments.size(1),
                               rewards.size(1),
                               credit.size(1),
                               static_cast<Normalization>(normalization),
                               eps,
                               members.data(),
                               scratch.data(),
                               scratch.data() + cells,
                               advantages.mutable_data_ptr<float>()};
  const pybind11::gil_scoped_release no_gil;
  // A thread takes about half a nanosecond a token and pass; waiting for a second one on a busy machine can cost more.
  constexpr int64_t kTokensOfThread = 1 << 17;
  const int64_t grain = std::max<int64_t>(1, kTokensOfThread / std::max<int64_t>(1, params.num_tokens));
  std::atomic<int32_t> wrong{-1};
  at::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int32_t segment = count_segments_cpu(params, b);
      if (segment >= 0) wrong = segment;
    }
  });
  if (wrong >= 0) return wrong;
  for (int64_t first = 0; first < batch;) {
    int64_t last = first + 1;
    while (last < batch && groups[members[static_cast<size_t>(last)]] == groups[members[static_cast<size_t>(first)]]) ++last;
    standardise_group_cpu(params, first, last);
    first = last;
  }
  at::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) write_advantages_cpu(params, b);
  });
  return -1;
}

}  // namespace

void bind_token_advantages(pybind11::module_& m) { m.def("token_advantages", &token_advantages); }

}  // namespace zoomzero
