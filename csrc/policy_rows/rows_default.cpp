// Row maths for the baseline of the architecture, and the choice between the instruction sets.
#include <cstdlib>
#include <cstring>

#define ZOOMZERO_ROW_MATH_LANES 4
#include "policy_rows/rows.inl"

namespace zoomzero {

const RowMath kRowMathDefault = ZOOMZERO_ROW_MATH("DEFAULT");

#ifdef ZOOMZERO_ROW_MATH_X86
namespace {

// ZOOMZERO_CPU_CAPABILITY may ask for less than the processor has, so that every table can be tested on one machine.
const RowMath& choose() {
  const char* limit = std::getenv("ZOOMZERO_CPU_CAPABILITY");
  const auto allowed = [limit](const RowMath& math) { return limit == nullptr || std::strcmp(limit, math.name) == 0; };
  if (allowed(kRowMathAvx512) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return kRowMathAvx512;
  }
  if (allowed(kRowMathAvx2) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kRowMathAvx2;
  return kRowMathDefault;
}

}  // namespace

const RowMath& row_math() {
  static const RowMath& chosen = choose();
  return chosen;
}
#else
const RowMath& row_math() { return kRowMathDefault; }
#endif

double scaled_logit(const void* row, LogitType type, int64_t index, float inv_temperature) {
  switch (type) {
    case LogitType::kFloat32: return static_cast<double>(static_cast<const float*>(row)[index]) * inv_temperature;
    case LogitType::kBFloat16:
      return static_cast<double>(to_float(static_cast<const BFloat16Bits*>(row)[index])) * inv_temperature;
    case LogitType::kFloat16:
      return static_cast<double>(to_float(static_cast<const Float16Bits*>(row)[index])) * inv_temperature;
  }
  __builtin_unreachable();
}

}  // namespace zoomzero
