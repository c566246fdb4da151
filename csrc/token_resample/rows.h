// The CPU loops of token_resample, compiled once per instruction set; see Note [Instruction sets] in cpu_capability.h.
#pragma once

#include <cstdint>

#include "common/copy_out.h"
#include "common/element_type.h"
#include "token_resample/op.h"

namespace zoomzero {

struct TokenRows {
  // A work item is one row of an output grid, counted over all slices; one function per ElementType.
  void (*resample[kNumElementTypes])(const TokenResampleParams&, CopyOut, int64_t begin_item, int64_t end_item);
};

extern const TokenRows kTokenRowsDefault, kTokenRowsAvx2, kTokenRowsAvx512;

}  // namespace zoomzero
