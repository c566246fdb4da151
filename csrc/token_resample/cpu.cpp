// token_resample on the CPU: picks the loops compiled for this processor.
#include "common/cpu_capability.h"
#include "token_resample/op.h"

namespace zoomzero {
namespace {

const TokenRows& token_rows() {
#ifdef __x86_64__
  switch (cpu_capability()) {
    case CpuCapability::kAvx512:
      return kTokenRowsAvx512;
    case CpuCapability::kAvx2:
      return kTokenRowsAvx2;
    case CpuCapability::kDefault:
      break;
  }
#endif
  return kTokenRowsDefault;
}

}  // namespace

void token_resample_cpu(const TokenResampleParams& p, int64_t begin_item, int64_t end_item) {
  token_rows().resample[static_cast<int32_t>(p.type)](p, begin_item, end_item);
}

}  // namespace zoomzero
