// Row maths compiled for AVX512; see Note [Instruction sets] in rows.h.
#define ZOOMZERO_ROW_MATH_LANES 16
#include "policy_rows/rows.inl"

namespace zoomzero {

const RowMath kRowMathAvx512 = ZOOMZERO_ROW_MATH("AVX512");

}  // namespace zoomzero
