// token_resample on the CPU: splits the rows of all output grids among threads.
#include "common/cpu_capability.h"
#include "common/huge_pages.h"
#include "common/parallel.h"
#include "token_resample/op.h"
#include "token_resample/rows.h"

namespace zoomzero {

void token_resample_cpu(const TokenResampleParams& p, int32_t num_threads) {
  static constexpr const TokenRows* kTables[] = ZOOMZERO_TABLES(kTokenRows);
  const auto resample = kTables[static_cast<int32_t>(cpu_capability())]->resample[static_cast<int32_t>(p.type)];
  const CopyOut copy_out = copy_out_function();
  advise_huge_pages(p.out, static_cast<size_t>(p.num_out * p.dim * bytes_of(p.type)));
  parallel_for(p.num_grid_rows, 1, num_threads, [&](int64_t begin, int64_t end) { resample(p, copy_out, begin, end); });
}

}  // namespace zoomzero
