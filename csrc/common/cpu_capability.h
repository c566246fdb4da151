// The instruction set that the CPU kernels use, chosen once at run time, so that one build runs on any processor.
#pragma once

#include <cstdint>

namespace zoomzero {

enum class CpuCapability : int32_t {
  kDefault = 0,
  kAvx2 = 1,    // with FMA and F16C
  kAvx512 = 2,  // F, BW, VL and DQ
};

// The best that the processor has, or the one that the environment variable ZOOMZERO_CPU_CAPABILITY names ("DEFAULT",
// "AVX2", "AVX512"), where the processor has it; else kDefault.
CpuCapability cpu_capability();

const char* cpu_capability_name();

}  // namespace zoomzero
