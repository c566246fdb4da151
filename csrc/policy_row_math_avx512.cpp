// Row maths compiled for AVX512; see Note [Instruction sets] in policy_row_math.h.
#define ZOOMZERO_ROW_MATH_LANES 16
#include "policy_row_math.inl"

namespace zoomzero {

const RowMath kRowMathAvx512 = ZOOMZERO_ROW_MATH("AVX512");

}  // namespace zoomzero
