#include "buffer_census.hpp"

namespace edged {

void BufferCensus::note(const ggml_tensor* tensor) {
    if (tensor->buffer != nullptr) buffers_.insert(tensor->buffer);
    if (tensor->view_src != nullptr && tensor->view_src->buffer != nullptr) {
        buffers_.insert(tensor->view_src->buffer);
    }
}

void BufferCensus::count(const ggml_tensor* tensor) {
    note(tensor);
    for (const ggml_tensor* source : tensor->src) {
        if (source != nullptr) note(source);
    }
}

BufferBytes BufferCensus::total(const std::function<bool(ggml_backend_buffer_t)>& left_out) const {
    BufferBytes bytes;
    for (ggml_backend_buffer_t buffer : buffers_) {
        if (left_out && left_out(buffer)) continue;
        const uint64_t size = ggml_backend_buffer_get_size(buffer);
        switch (ggml_backend_buffer_get_usage(buffer)) {
            case GGML_BACKEND_BUFFER_USAGE_WEIGHTS:
                bytes.weights += size;
                break;
            case GGML_BACKEND_BUFFER_USAGE_COMPUTE:
                bytes.compute += size;
                break;
            default:
                bytes.state += size;
        }
    }
    return bytes;
}

}  // namespace edged
