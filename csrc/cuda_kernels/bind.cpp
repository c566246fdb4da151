// Launches of CUDA kernels between Python and CUDA. A build without nvcc has the launches, and Python compiles the
// kernels.
#include "bindings.h"
#include "common/addresses.h"
#include "common/cuda.h"
#include "cuda_kernels/op.h"

namespace zoomzero {
namespace {

pybind11::tuple parameters(const KernelLaunch& launch) {
  pybind11::list all;
  for (const std::string& bytes : launch.parameters) all.append(pybind11::bytes(bytes));
  return pybind11::tuple(all);
}

#ifdef ZOOMZERO_WITH_CUDA
void launch_on_cuda(const KernelLaunch& launch, int32_t device, Address stream) {
  check_cuda(cudaSetDevice(device), launch.kernel.c_str());
  check_cuda(launch_cuda_kernel(launch, stream_at(stream)), launch.kernel.c_str());
}
#endif

}  // namespace

void bind_cuda_kernels(pybind11::module_& m) {
  pybind11::class_<KernelLaunch>(m, "KernelLaunch")
      .def_readonly("kernel", &KernelLaunch::kernel)
      .def_readonly("num_blocks", &KernelLaunch::num_blocks)
      .def_readonly("num_threads", &KernelLaunch::num_threads)
      .def_readonly("shared_bytes", &KernelLaunch::shared_bytes)
      .def_property_readonly("parameters", &parameters);
  pybind11::list names;
#ifdef ZOOMZERO_WITH_CUDA
  for (const std::string& name : cuda_kernel_names()) names.append(name);
  m.def("launch_cuda_kernel", &launch_on_cuda);
#endif
  m.attr("CUDA_KERNELS") = pybind11::tuple(names);
}

}  // namespace zoomzero
