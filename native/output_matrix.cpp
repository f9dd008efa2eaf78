#include "output_matrix.hpp"

#include <ggml.h>
#include <gguf.h>

#include <memory>

#include "error.hpp"
#include "llama_log.hpp"
#include "unheld_buffer.hpp"

// Exported by libllama for its own tools; the build is pinned to one exact version of it.
const std::vector<std::pair<std::string, ggml_tensor*>>& llama_internal_get_tensor_map(const llama_model*);

namespace edged {

namespace {

constexpr const char* kOutput = "output.weight";
constexpr const char* kTied = "token_embd.weight";

[[noreturn]] void refuse(const std::string& why) {
    throw WindowFailure("the output matrix cannot be streamed: " + why);
}

// A tensor takes a place in a buffer of its layout, and so learns which kernels it is for.
void introduce(ggml_tensor* tensor, ggml_backend_buffer_t buffer) {
    if (ggml_backend_tensor_alloc(buffer, tensor, ggml_backend_buffer_get_base(buffer)) !=
        GGML_STATUS_SUCCESS) {
        refuse("it cannot be laid out for its kernels");
    }
}

ggml_backend_buffer_ptr stand_in(ggml_backend_buffer_type_t layout, uint64_t bytes) {
    ggml_backend_buffer_ptr buffer(ggml_backend_buft_alloc_buffer(layout, bytes));
    if (!buffer) throw WindowFailure("not enough memory");
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    return buffer;
}

}  // namespace

OutputMatrix::OutputMatrix(ComposedFile& file) {
    const ErrorLines errors;
    const std::unique_ptr<FILE, int (*)(FILE*)> stream(open_stream(file), std::fclose);
    const std::unique_ptr<gguf_context, decltype(&gguf_free)> index(
        gguf_init_from_file_ptr(stream.get(), {true, nullptr}), gguf_free);
    if (!index) throw WindowFailure("cannot read the window's header: " + errors.summary("no reason given"));
    int64_t number = gguf_find_tensor(index.get(), kOutput);
    name_ = number < 0 ? kTied : kOutput;
    if (number < 0) number = gguf_find_tensor(index.get(), kTied);
    if (number < 0) refuse("the window has none");
    pattern_ = name_ == kTied ? "^token_embd\\.weight$" : "^output\\.weight$";
    file_offset_ = gguf_get_data_offset(index.get()) + gguf_get_tensor_offset(index.get(), number);
    file_bytes_ = gguf_get_tensor_size(index.get(), number);

    ggml_backend_dev_t no_devices[] = {nullptr};
    llama_model_params params = llama_model_default_params();
    params.load_mode = LLAMA_LOAD_MODE_NONE;
    params.n_gpu_layers = 0;
    params.devices = no_devices;
    params.no_alloc = true;
    const std::unique_ptr<FILE, int (*)(FILE*)> again(open_stream(file), std::fclose);
    const std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
        llama_model_load_from_file_ptr(again.get(), params), llama_model_free);
    if (!model) throw WindowFailure(file.error().empty() ? errors.summary("given up") : file.error());
    look_at(model.get());
}

// libllama loads a table that is input and output twice where the product has a layout of its own.
void OutputMatrix::look_at(const llama_model* model) {
    const ggml_tensor* found = nullptr;
    for (const auto& [name, tensor] : llama_internal_get_tensor_map(model)) {
        if (name != name_) continue;
        ggml_backend_buffer_type_t layout = ggml_backend_buffer_get_type(tensor->buffer);
        if (found == nullptr || !ggml_backend_buft_is_host(layout)) {
            found = tensor;
            layout_ = layout;
        }
    }
    if (found == nullptr) refuse("the window has none");
    ggml_backend_dev_t device = ggml_backend_buft_get_device(layout_);
    if (device != nullptr && ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU) {
        refuse("it is not in the processor's memory");
    }
    if (ggml_n_dims(found) != 2) refuse("it has not two dimensions");
    // The kernels go by the whole's shape, so they are asked for with it; nothing is written there.
    const ggml_context_ptr context(ggml_init({ggml_tensor_overhead(), nullptr, true}));
    if (!context) throw WindowFailure("not enough memory");
    ggml_tensor* twin = ggml_dup_tensor(context.get(), found);
    const ggml_backend_buffer_ptr place = stand_in(layout_, ggml_backend_buft_get_alloc_size(layout_, found));
    introduce(twin, place.get());
    kernels_ = twin->extra;
}

llama_model_tensor_buft_override OutputMatrix::elsewhere() const {
    return {pattern_.c_str(), unheld_large_buffer_type()};
}

void OutputMatrix::adopt(const llama_model* model) {
    ggml_tensor* matrix = nullptr;
    for (const auto& [name, tensor] : llama_internal_get_tensor_map(model)) {
        if (name == name_) matrix = tensor;
    }
    if (matrix == nullptr) throw WindowFailure("the window has lost its tensor " + name_);
    zeros_ = Pages(ggml_nbytes(matrix));
    host_ = stand_in(ggml_backend_cpu_buffer_type(), ggml_backend_buft_get_alignment(layout_));
    matrix->buffer = host_.get();
    matrix->data = zeros_.data();
    matrix->extra = nullptr;
    weight_.tensor = matrix;
}

std::unique_ptr<RowSlices> OutputMatrix::cut(uint64_t slice_bytes, int layer) {
    const uint64_t bytes = ggml_backend_buft_get_alloc_size(layout_, weight_.tensor);
    weight_ = {weight_.tensor, "output", layer, file_offset_, file_bytes_, bytes, layout_};
    place_ = stand_in(layout_, bytes);
    std::unique_ptr<RowSlices> rows = RowCutter::cut_apart(weight_, place_.get(), kernels_, slice_bytes);
    if (!rows) refuse("a part of its rows has other kernels than the whole");
    return rows;
}

bool OutputMatrix::is_stand_in(ggml_backend_buffer_t buffer) const {
    return buffer == host_.get() || buffer == place_.get();
}

}  // namespace edged
