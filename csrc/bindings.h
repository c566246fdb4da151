// One function a folder: adds its entry points to the module. Defined in csrc/<folder>/bind.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace zoomzero {

void bind_cuda_kernels(pybind11::module_& m);
void bind_embedded_kernels(pybind11::module_& m);
void bind_frame_resample(pybind11::module_& m);
void bind_policy_rows(pybind11::module_& m);
void bind_token_advantages(pybind11::module_& m);
void bind_token_resample(pybind11::module_& m);

}  // namespace zoomzero
