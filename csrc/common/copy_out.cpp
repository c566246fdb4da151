#include "common/copy_out.h"

#include <algorithm>
#include <cstring>

#include "common/cpu_capability.h"
#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace zoomzero {
namespace {

void copy_out_default(void* out, const void* source, int64_t num_bytes, bool) {
  std::memcpy(out, source, static_cast<size_t>(num_bytes));
}

#ifdef __x86_64__
constexpr int64_t kLine = 64;  // bytes of a cache line

// Bytes before the first whole cache line of `out`.
inline int64_t head_bytes(const uint8_t* out, int64_t num_bytes) {
  return std::min<int64_t>(-reinterpret_cast<intptr_t>(out) & (kLine - 1), num_bytes);
}

// Up to the first whole cache line, then whole lines past the caches, then the rest.
__attribute__((target("avx2"))) void copy_out_avx2(void* out, const void* source, int64_t num_bytes, bool stream) {
  uint8_t* to = static_cast<uint8_t*>(out);
  const uint8_t* from = static_cast<const uint8_t*>(source);
  if (stream) {
    const int64_t head = head_bytes(to, num_bytes);
    std::memcpy(to, from, static_cast<size_t>(head));
    to += head, from += head, num_bytes -= head;
    for (; num_bytes >= kLine; to += kLine, from += kLine, num_bytes -= kLine) {
      const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32));
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to), low);
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 32), high);
    }
    _mm_sfence();
  }
  std::memcpy(to, from, static_cast<size_t>(num_bytes));
}

__attribute__((target("avx512f"))) void copy_out_avx512(void* out, const void* source, int64_t num_bytes, bool stream) {
  uint8_t* to = static_cast<uint8_t*>(out);
  const uint8_t* from = static_cast<const uint8_t*>(source);
  if (stream) {
    const int64_t head = head_bytes(to, num_bytes);
    std::memcpy(to, from, static_cast<size_t>(head));
    to += head, from += head, num_bytes -= head;
    for (; num_bytes >= kLine; to += kLine, from += kLine, num_bytes -= kLine) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
    }
    _mm_sfence();
  }
  std::memcpy(to, from, static_cast<size_t>(num_bytes));
}
#endif

}  // namespace

CopyOut copy_out_function() {
#ifdef __x86_64__
  constexpr CopyOut kFunctions[] = {copy_out_default, copy_out_avx2, copy_out_avx512};
#else
  constexpr CopyOut kFunctions[] = {copy_out_default};
#endif
  return kFunctions[static_cast<int32_t>(cpu_capability())];
}

}  // namespace zoomzero
