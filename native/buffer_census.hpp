// How much memory a graph's tensors live in, buffer by buffer, as ggml itself reports it.
#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <functional>
#include <set>

#include "taps.hpp"

namespace edged {

class BufferCensus {
  public:
    // Notes the buffers of `tensor` and of what it is computed from.
    void count(const ggml_tensor* tensor);
    // Without the buffers for which `left_out` is true, where it is given.
    BufferBytes total(const std::function<bool(ggml_backend_buffer_t)>& left_out = {}) const;

  private:
    void note(const ggml_tensor* tensor);

    std::set<ggml_backend_buffer_t> buffers_;
};

}  // namespace edged
