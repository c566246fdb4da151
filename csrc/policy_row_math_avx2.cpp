// Row maths compiled for AVX2; see Note [Instruction sets] in policy_row_math.h.
#define ZOOMZERO_ROW_MATH_LANES 8
#include "policy_row_math.inl"

namespace zoomzero {

const RowMath kRowMathAvx2 = ZOOMZERO_ROW_MATH("AVX2");

}  // namespace zoomzero
