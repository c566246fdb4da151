// Machine code of the Triton kernels, made when zoomzero was built, and its launch: no Triton and no compilation at run
// time. What is embedded comes from zoomzero_kernels/triton_kernels/variants.py by way of
// build_backend/embed_kernels.py.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace zoomzero {

// One variant of a kernel for one architecture.
struct EmbeddedKernel {
  const char* variant;   // "policy_rows_kernel.bf16.aligned"
  int32_t architecture;  // compute capability times ten
  const char* symbol;    // the kernel's name in the image
  // One letter a parameter: p pointer, i int32, l int64, f float, d double, 0 a null pointer in place of Triton's own
  // scratch memory, which these kernels do not use.
  const char* parameters;
  int32_t num_threads;  // of a block
  int32_t shared_bytes;
  const void* image;  // a cubin
  size_t num_bytes;
};

inline constexpr size_t kMaxKernelParameters = 40;

// All of them; defined in the generated source.
std::span<const EmbeddedKernel> embedded_kernels();

// Launches num_programs blocks of `kernel`, which must be an element of embedded_kernels(), on the current device.
// parameters: the address of each parameter. The image is loaded at its first launch, once for all devices.
cudaError_t launch_embedded_kernel(const EmbeddedKernel& kernel, uint32_t num_programs, void** parameters,
                                   cudaStream_t stream);

}  // namespace zoomzero
