// Finished elements on their way to an output.
#pragma once

#include <cstdint>

namespace zoomzero {

// Outputs larger than this leave the caches before anyone reads them: written past the caches, they need not be read
// first.
inline constexpr int64_t kStreamBytes = int64_t{16} << 20;

// memcpy(out, source, num_bytes); `stream`: past the caches, where the processor can.
using CopyOut = void (*)(void* out, const void* source, int64_t num_bytes, bool stream);

// The one for this processor.
CopyOut copy_out_function();

}  // namespace zoomzero
