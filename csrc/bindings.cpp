// The extension module.
#include "bindings.hpp"

#include "cpu/kernels.hpp"
#include "device.hpp"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native core: ridge rows and search rounds. See _core.pyi.";
  m.def("instruction_set", [] { return cexnn::cpu::kernels().name; });
  m.def("cuda_available", &cexnn::cuda::available);
  m.def("cuda_free_memory", &cexnn::cuda::free_memory);
  cexnn::register_device_array(m);
  cexnn::register_als(m);
  cexnn::register_known_scores(m);
  cexnn::register_pack(m);
  cexnn::register_searcher(m);
}
