// Row maths compiled for AVX2; see Note [Instruction sets] in rows.h.
#define ZOOMZERO_ROW_MATH_LANES 8
#include "policy_rows/rows.inl"

namespace zoomzero {

const RowMath kRowMathAvx2 = ZOOMZERO_ROW_MATH("AVX2");

}  // namespace zoomzero
