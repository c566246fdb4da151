// The types of the elements that ops read and write. Plain C++17: CUDA sources include it too.
#pragma once

#include <cstdint>

namespace zoomzero {

enum class ElementType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
inline constexpr int32_t kNumElementTypes = 3;

constexpr int64_t bytes_of(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

}  // namespace zoomzero
