// token_resample: exact-area averaging of visual tokens to a grid of another size, slice by slice.
#pragma once

#include <cstdint>

#include "common/element_type.h"

#if defined(ZOOMZERO_WITH_CUDA) || defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

#ifdef __CUDACC__
#define ZOOMZERO_CELLS __host__ __device__
#else
#define ZOOMZERO_CELLS
#endif

namespace zoomzero {

// One temporal slice: a grid of in_h x in_w tokens from row first_in on, and what it becomes.
struct TokenSlice {
  int64_t first_in, in_h, in_w;
  int64_t first_out, out_h, out_w;
  int64_t first_out_grid_row;  // grid rows of all slices before this one
};

// Forward: in = source, out = target. Backward: in = gradient of the target, out = gradient of the source. Either way,
// with a row of cells of size 1/in and one of size 1/out laid over each other, out[i] = sum_j overlap(i, j) in[j] /
// source size.
struct TokenResampleParams {
  const void* in;            // [sum(in_h * in_w), dim]
  void* out;                 // [sum(out_h * out_w), dim]
  const TokenSlice* slices;  // [num_slices]
  int64_t num_slices;
  int64_t num_out;        // sum(out_h * out_w)
  int64_t num_grid_rows;  // sum(out_h)
  int64_t dim;
  bool backward;
  ElementType type;
};

// Cells of the axis with `in` cells that cell i of the axis with `out` cells covers, in whole or in part: [first, end).
struct CellRange {
  int64_t first, end;
};

ZOOMZERO_CELLS inline CellRange covered_cells(int64_t i, int64_t out, int64_t in) {
  return {i * in / out, ((i + 1) * in + out - 1) / out};
}

// How far cell i of `out` and cell j of `in` overlap, in units of 1 / (out * in) of the axis; at most max(in, out).
ZOOMZERO_CELLS inline int64_t overlap(int64_t i, int64_t out, int64_t j, int64_t in) {
  const int64_t begin = i * in > j * out ? i * in : j * out;
  const int64_t end_i = (i + 1) * in, end_j = (j + 1) * out;
  return (end_i < end_j ? end_i : end_j) - begin;
}

void token_resample_cpu(const TokenResampleParams& p, int32_t num_threads);

#if defined(ZOOMZERO_WITH_CUDA) || defined(__CUDACC__)
// All pointers in device memory. Launches on `stream` and returns the launch's status; nothing waits.
cudaError_t token_resample_cuda(const TokenResampleParams& p, cudaStream_t stream);
#endif

}  // namespace zoomzero
