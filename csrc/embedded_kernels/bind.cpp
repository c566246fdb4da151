// The embedded Triton kernels between Python and CUDA: packs arguments by the kernel's parameters and launches on the
// stream that Python gives. Without CUDA the list of kernels is empty.
#include "bindings.h"

#ifdef ZOOMZERO_EMBEDDED_KERNELS
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>

#include "common/addresses.h"
#include "common/cuda.h"
#include "embedded_kernels/op.h"
#endif

namespace zoomzero {

#ifdef ZOOMZERO_EMBEDDED_KERNELS
namespace {

const EmbeddedKernel& find(const std::string& variant, int32_t architecture) {
  for (const EmbeddedKernel& kernel : embedded_kernels()) {
    if (variant == kernel.variant && architecture == kernel.architecture) return kernel;
  }
  throw pybind11::value_error("embedded_kernels: " + variant + " is not embedded for sm_" +
                              std::to_string(architecture) + "; choose one of EMBEDDED_KERNELS");
}

// A launch as CUDA takes it: values side by side, and their addresses.
struct PackedLaunch {
  uint32_t num_programs = 0;
  size_t num_parameters = 0;
  std::array<uint64_t, kMaxKernelParameters> values{};
  std::array<void*, kMaxKernelParameters> addresses{};
};

size_t size_of(char letter) { return letter == 'i' || letter == 'f' ? 4 : 8; }

template <typename T>
void put(uint64_t& place, T value) {
  std::memcpy(&place, &value, sizeof(value));
}

void put_argument(uint64_t& place, char letter, const pybind11::handle& argument) {
  switch (letter) {
    case 'p':
      return put(place, argument.cast<Address>());
    case 'i':
      return put(place, argument.cast<int32_t>());
    case 'l':
      return put(place, argument.cast<int64_t>());
    case 'f':
      return put(place, argument.cast<float>());
    default:
      return put(place, argument.cast<double>());
  }
}

// The grid is one-dimensional: one block per program.
PackedLaunch pack(const EmbeddedKernel& kernel, int64_t num_programs, const pybind11::tuple& arguments) {
  if (num_programs <= 0 || num_programs > std::numeric_limits<int32_t>::max()) {
    throw pybind11::value_error("embedded_kernels: a launch must have 1 to 2^31 - 1 programs, got " +
                                std::to_string(num_programs) + "; split the batch");
  }
  const size_t num_wanted =
      static_cast<size_t>(std::count_if(kernel.parameters, kernel.parameters + std::strlen(kernel.parameters),
                                        [](char letter) { return letter != '0'; }));
  if (arguments.size() != num_wanted) {
    throw pybind11::value_error(std::string("embedded_kernels: ") + kernel.variant + " must be given " +
                                std::to_string(num_wanted) + " arguments, got " + std::to_string(arguments.size()) +
                                "; pass those of its launch unchanged");
  }
  PackedLaunch launch;
  launch.num_programs = static_cast<uint32_t>(num_programs);
  launch.num_parameters = std::strlen(kernel.parameters);
  size_t taken = 0;
  for (size_t i = 0; i < launch.num_parameters; ++i) {
    launch.addresses[i] = &launch.values[i];
    if (kernel.parameters[i] == '0') continue;
    put_argument(launch.values[i], kernel.parameters[i], arguments[taken++]);
  }
  return launch;
}

void launch(const std::string& variant, int32_t architecture, int64_t num_programs, const pybind11::tuple& arguments,
            int32_t device, Address stream) {
  const EmbeddedKernel& kernel = find(variant, architecture);
  PackedLaunch packed = pack(kernel, num_programs, arguments);
  check_cuda(cudaSetDevice(device), kernel.variant);
  check_cuda(launch_embedded_kernel(kernel, packed.num_programs, packed.addresses.data(), stream_at(stream)),
             kernel.variant);
}

// What `launch` would hand to CUDA: blocks, threads of a block, shared bytes, and the bytes of each parameter.
pybind11::tuple packed(const std::string& variant, int32_t architecture, int64_t num_programs,
                       const pybind11::tuple& arguments) {
  const EmbeddedKernel& kernel = find(variant, architecture);
  const PackedLaunch packed = pack(kernel, num_programs, arguments);
  pybind11::list parameters;
  for (size_t i = 0; i < packed.num_parameters; ++i) {
    parameters.append(pybind11::bytes(static_cast<const char*>(packed.addresses[i]), size_of(kernel.parameters[i])));
  }
  return pybind11::make_tuple(packed.num_programs, kernel.num_threads, kernel.shared_bytes, parameters);
}

pybind11::bytes image(const std::string& variant, int32_t architecture) {
  const EmbeddedKernel& kernel = find(variant, architecture);
  return pybind11::bytes(static_cast<const char*>(kernel.image), kernel.num_bytes);
}

}  // namespace
#endif

void bind_embedded_kernels(pybind11::module_& m) {
  pybind11::list names;
#ifdef ZOOMZERO_EMBEDDED_KERNELS
  for (const EmbeddedKernel& kernel : embedded_kernels()) {
    names.append(pybind11::make_tuple(kernel.variant, kernel.architecture));
  }
  m.def("embedded_kernel_image", &image);
  m.def("packed_embedded_launch", &packed);
  m.def("launch_embedded_kernel", &launch);
#endif
  m.attr("EMBEDDED_KERNELS") = pybind11::tuple(names);
}

}  // namespace zoomzero
