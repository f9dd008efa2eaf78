#include <llama.h>
#include <nanobind/nanobind.h>

NB_MODULE(_native, m) {
    m.def("llama_version", [] { return llama_version(); });
}
