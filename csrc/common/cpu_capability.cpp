#include "common/cpu_capability.h"

#include <cstdlib>
#include <cstring>

namespace zoomzero {
namespace {

constexpr const char* kNames[] = {"DEFAULT", "AVX2", "AVX512"};

CpuCapability choose() {
#ifdef __x86_64__
  const char* wanted = std::getenv("ZOOMZERO_CPU_CAPABILITY");
  const auto allowed = [wanted](CpuCapability capability) {
    return wanted == nullptr || std::strcmp(wanted, kNames[static_cast<int32_t>(capability)]) == 0;
  };
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && allowed(CpuCapability::kAvx512)) return CpuCapability::kAvx512;
  if (avx2 && allowed(CpuCapability::kAvx2)) return CpuCapability::kAvx2;
#endif
  return CpuCapability::kDefault;
}

}  // namespace

CpuCapability cpu_capability() {
  static const CpuCapability chosen = choose();
  return chosen;
}

const char* cpu_capability_name() { return kNames[static_cast<int32_t>(cpu_capability())]; }

}  // namespace zoomzero
