// What the kernels of token_resample are handed. Includes nothing but integer types, so that device code may include
// it.
#pragma once

#include <cstdint>

#include "common/element_type.h"

#ifdef __CUDACC__
#define ZOOMZERO_CELLS __host__ __device__
#else
#define ZOOMZERO_CELLS
#endif

namespace zoomzero {

// One temporal slice: a grid of in_h x in_w tokens from row first_in on, and what it becomes. Sides are at most 2^15.
struct TokenSlice {
  int64_t first_in, in_h, in_w;
  int64_t first_out, out_h, out_w;
  int64_t first_out_grid_row;  // grid rows of all slices before this one
};

// Forward: in = source, out = target. Backward: in = gradient of the target, out = gradient of the source. Either way,
// with a row of cells of size 1/in and one of size 1/out laid over each other, out[i] = sum_j overlap(i, j) in[j] /
// source size.
struct TokenResampleParams {
  const void* in;                 // [sum(in_h * in_w), dim]
  void* out;                      // [sum(out_h * out_w), dim]
  const TokenSlice* slices;       // [num_slices]
  const int32_t* slice_of_token;  // [num_out], for the CUDA kernel; the CPU's needs none
  int64_t num_slices;
  int64_t num_out;        // sum(out_h * out_w)
  int64_t num_grid_rows;  // sum(out_h)
  int64_t dim;
  bool backward;
  ElementType type;
};

// Cells of the axis with `in` cells that cell i of the axis with `out` cells covers, in whole or in part: [first, end).
struct CellRange {
  int32_t first, end;
};

// Sides of at most 2^15 keep every product below 2^31.
ZOOMZERO_CELLS inline CellRange covered_cells(int32_t i, int32_t out, int32_t in) {
  return {i * in / out, ((i + 1) * in + out - 1) / out};
}

// How far cell i of `out` and cell j of `in` overlap, in units of 1 / (out * in) of the axis; at most max(in, out).
ZOOMZERO_CELLS inline int32_t overlap(int32_t i, int32_t out, int32_t j, int32_t in) {
  const int32_t begin = i * in > j * out ? i * in : j * out;
  const int32_t end_i = (i + 1) * in, end_j = (j + 1) * out;
  return (end_i < end_j ? end_i : end_j) - begin;
}

}  // namespace zoomzero
