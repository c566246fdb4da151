// The module zoomzero_kernels._C. Private: arguments are checked in the Python functions that call it.
#include "bindings.h"

#include "common/cpu_capability.h"
#include "common/element_type.h"
#include "common/parallel.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native code of zoomzero_kernels. Private: call the functions of zoomzero_kernels instead.";
#ifdef ZOOMZERO_WITH_CUDA
  m.attr("WITH_CUDA") = true;
#else
  m.attr("WITH_CUDA") = false;
#endif
  m.attr("OPENMP") = zoomzero::kHasOpenMP;
  pybind11::enum_<zoomzero::ElementType>(m, "ElementType")
      .value("FLOAT32", zoomzero::ElementType::kFloat32)
      .value("BFLOAT16", zoomzero::ElementType::kBFloat16)
      .value("FLOAT16", zoomzero::ElementType::kFloat16);
  m.def("cpu_capability", &zoomzero::cpu_capability_name, "Instruction set that the CPU kernels chose.");
  zoomzero::bind_cuda_kernels(m);
  zoomzero::bind_embedded_kernels(m);
  zoomzero::bind_frame_resample(m);
  zoomzero::bind_policy_rows(m);
  zoomzero::bind_token_advantages(m);
  zoomzero::bind_token_resample(m);
}
