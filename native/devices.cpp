#include "devices.hpp"

#include <ggml-backend.h>
#include <llama.h>

namespace edged {

namespace {

const char* kind_name(enum ggml_backend_dev_type type) {
    switch (type) {
        case GGML_BACKEND_DEVICE_TYPE_CPU:
            return "cpu";
        case GGML_BACKEND_DEVICE_TYPE_GPU:
            return "gpu";
        case GGML_BACKEND_DEVICE_TYPE_IGPU:
            return "igpu";
        case GGML_BACKEND_DEVICE_TYPE_ACCEL:
            return "accel";
        default:
            return "other";
    }
}

}  // namespace

std::vector<DeviceInfo> devices() {
    std::vector<DeviceInfo> found;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        size_t free = 0;
        size_t total = 0;
        ggml_backend_dev_memory(device, &free, &total);
        found.push_back({ggml_backend_dev_name(device), ggml_backend_dev_description(device),
                         kind_name(ggml_backend_dev_type(device)), free, total});
    }
    return found;
}

std::string system_info() { return llama_print_system_info(); }

}  // namespace edged
