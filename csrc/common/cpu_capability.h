// The instruction set that the CPU kernels use, chosen once at run time, so that one build runs on any processor of its
// architecture.
//
// Note [Instruction sets]: a rows.cpp is compiled once per instruction set, with that set's flags, and defines one
// table of functions, named by ZOOMZERO_TABLE. The table for this processor is chosen at run time from ZOOMZERO_TABLES.
// Everything else in such a file has internal linkage, and what it includes is inlined always: a function compiled with
// wide instructions must not be the copy that the linker keeps for all.
#pragma once

#include <cstdint>

namespace zoomzero {

enum class CpuCapability : int32_t {
  kDefault = 0,
  kAvx2 = 1,    // with FMA and F16C
  kAvx512 = 2,  // F, BW, VL and DQ, and all of kAvx2
};

// The best that the processor has, or the one that the environment variable ZOOMZERO_CPU_CAPABILITY names ("DEFAULT",
// "AVX2", "AVX512"), where the processor has it; else kDefault.
CpuCapability cpu_capability();

const char* cpu_capability_name();

}  // namespace zoomzero

// The tables of a name, in the order of CpuCapability.
#ifdef __x86_64__
#define ZOOMZERO_TABLES(name) {&name##Default, &name##Avx2, &name##Avx512}
#else
#define ZOOMZERO_TABLES(name) {&name##Default}
#endif

// The name of a table in a file that is compiled per instruction set: the build defines ZOOMZERO_INSTRUCTION_SET as
// Default, Avx2 or Avx512.
#define ZOOMZERO_PASTE_NOW(name, set) name##set
#define ZOOMZERO_PASTE(name, set) ZOOMZERO_PASTE_NOW(name, set)
#define ZOOMZERO_TABLE(name) ZOOMZERO_PASTE(name, ZOOMZERO_INSTRUCTION_SET)
