// Memory as Python hands it over: plain numbers, 0 for what is absent.
#pragma once

#include <cstdint>

namespace zoomzero {

using Address = uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace zoomzero
