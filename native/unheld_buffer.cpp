#include "unheld_buffer.hpp"

#include <exception>

#include "pages.hpp"
#include "shared_pages.hpp"

// The interface of a backend's buffers is ggml's own; these are the parts that are used here, as ggml has
// them in the one version that the build is pinned to.
struct ggml_backend_buffer_type {
    const char* (*get_name)(ggml_backend_buffer_type_t);
    ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t);
    size_t (*get_alignment)(ggml_backend_buffer_type_t);
    size_t (*get_max_size)(ggml_backend_buffer_type_t);
    size_t (*get_alloc_size)(ggml_backend_buffer_type_t, const ggml_tensor*);
    bool (*is_host)(ggml_backend_buffer_type_t);
    ggml_backend_dev_t device;
    void* context;
};

struct ggml_backend_buffer_i {
    void (*free_buffer)(ggml_backend_buffer_t);
    void* (*get_base)(ggml_backend_buffer_t);
    ggml_status (*init_tensor)(ggml_backend_buffer_t, ggml_tensor*);
    void (*memset_tensor)(ggml_backend_buffer_t, ggml_tensor*, uint8_t, size_t, size_t);
    void (*set_tensor)(ggml_backend_buffer_t, ggml_tensor*, const void*, size_t, size_t);
    void (*get_tensor)(ggml_backend_buffer_t, const ggml_tensor*, void*, size_t, size_t);
    void (*set_tensor_2d)(ggml_backend_buffer_t, ggml_tensor*, const void*, size_t, size_t, size_t, size_t,
                          size_t);
    void (*get_tensor_2d)(ggml_backend_buffer_t, const ggml_tensor*, void*, size_t, size_t, size_t, size_t,
                          size_t);
    bool (*cpy_tensor)(ggml_backend_buffer_t, const ggml_tensor*, ggml_tensor*);
    void (*clear)(ggml_backend_buffer_t, uint8_t);
    void (*reset)(ggml_backend_buffer_t);
};

struct ggml_backend_buffer {
    ggml_backend_buffer_i iface;
    ggml_backend_buffer_type_t type;
    void* context;
    size_t size;
    ggml_backend_buffer_usage usage;
};

extern "C" ggml_backend_buffer_t ggml_backend_buffer_init(ggml_backend_buffer_type_t, ggml_backend_buffer_i,
                                                          void*, size_t);

namespace edged {

namespace {

constexpr size_t kAlignment = 64;

const char* name(ggml_backend_buffer_type_t) { return "unheld"; }

size_t alignment(ggml_backend_buffer_type_t) { return kAlignment; }

// Not host memory: libllama would read straight into it, through a stream that has a buffer of its own and
// copies from there even where we pass over what is to be read.
bool is_host(ggml_backend_buffer_type_t) { return false; }

Pages& pages(ggml_backend_buffer_t buffer) { return *static_cast<Pages*>(buffer->context); }

void free_buffer(ggml_backend_buffer_t buffer) { delete &pages(buffer); }

void* base(ggml_backend_buffer_t buffer) { return pages(buffer).data(); }

void set_tensor(ggml_backend_buffer_t, ggml_tensor*, const void*, size_t, size_t) {}

void clear(ggml_backend_buffer_t, uint8_t) {}

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_i interface{};
    interface.free_buffer = free_buffer;
    interface.get_base = base;
    interface.set_tensor = set_tensor;
    interface.clear = clear;
    try {
        return ggml_backend_buffer_init(type, interface, new Pages(size), size);
    } catch (const std::exception&) {
        return nullptr;  // ggml is C: it takes this for a lack of memory
    }
}

SharedPages& shared(ggml_backend_buffer_t buffer) { return *static_cast<SharedPages*>(buffer->context); }

ggml_backend_buffer_t allocate_large(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_i interface{};
    interface.free_buffer = [](ggml_backend_buffer_t buffer) { delete &shared(buffer); };
    interface.get_base = [](ggml_backend_buffer_t buffer) -> void* { return shared(buffer).data(); };
    interface.set_tensor = set_tensor;
    interface.clear = clear;
    try {
        return ggml_backend_buffer_init(type, interface, new SharedPages(size), size);
    } catch (const std::exception&) {
        return nullptr;
    }
}

}  // namespace

ggml_backend_buffer_type_t unheld_large_buffer_type() {
    static ggml_backend_buffer_type type{[](ggml_backend_buffer_type_t) { return "unheld, large"; },
                                         allocate_large,
                                         alignment,
                                         nullptr,
                                         nullptr,
                                         [](ggml_backend_buffer_type_t) { return true; },
                                         nullptr,
                                         nullptr};
    return &type;
}

ggml_backend_buffer_type_t unheld_buffer_type() {
    static ggml_backend_buffer_type type{name,    allocate, alignment, nullptr,
                                         nullptr, is_host,  nullptr,   nullptr};
    return &type;
}

}  // namespace edged
