// Loops over ranges by OpenMP threads. The caller says how many: torch's thread count, so that torch.set_num_threads
// governs these loops too.
//
// One thread never enters an OpenMP region: the workers of a data loader fork from a process whose team of threads does
// not exist in the child, and a region there would wait for it forever. Without OpenMP everything runs on one thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace zoomzero {

#ifdef _OPENMP
inline constexpr bool kHasOpenMP = true;
#else
inline constexpr bool kHasOpenMP = false;
#endif

// function(begin, end) for ranges that cover [0, count), each on a thread of its own and no more threads than
// num_threads or than ranges of `grain`. An exception of a range is thrown again here.
template <typename Function>
void parallel_for(int64_t count, [[maybe_unused]] int64_t grain, [[maybe_unused]] int32_t num_threads,
                  const Function& function) {
  if (count <= 0) return;
#ifdef _OPENMP
  const int64_t wanted = std::min<int64_t>(num_threads, (count + grain - 1) / grain);
  if (wanted > 1 && omp_in_parallel() == 0) {
    std::exception_ptr error;
    std::atomic_flag failed;
#pragma omp parallel num_threads(static_cast<int>(wanted))
    {
      const int64_t team = omp_get_num_threads();
      const int64_t size = (count + team - 1) / team;
      const int64_t begin = omp_get_thread_num() * size;
      try {
        if (begin < count) function(begin, std::min(count, begin + size));
      } catch (...) {
        if (!failed.test_and_set()) error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  function(int64_t{0}, count);
}

// function(item) for each item of [0, count). Threads take items one by one: right where items cost differently.
template <typename Function>
void parallel_for_each(int64_t count, int32_t num_threads, const Function& function) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min<int64_t>(num_threads, count), 1, num_threads, [&](int64_t, int64_t) {
    for (int64_t item = next++; item < count; item = next++) function(item);
  });
}

}  // namespace zoomzero
