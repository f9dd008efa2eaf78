#include "output_rows.hpp"

#include <ggml.h>
#include <gguf.h>

#include <algorithm>
#include <cstring>
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
constexpr int64_t kRowsTogether = 64;  // a multiple of the rows that any kernel interleaves
constexpr int64_t kRowsAtOnce = 4;     // a matrix whose rows these do not divide has other kernels
constexpr int64_t kMostSlices = 400;   // an image has room for no more

[[noreturn]] void refuse(const std::string& why) {
    throw WindowFailure("the output matrix cannot be streamed: " + why);
}

ggml_context_ptr small_context(size_t n_tensors, size_t n_nodes = 0) {
    const size_t graph = n_nodes > 0 ? ggml_graph_overhead_custom(n_nodes, false) : 0;
    ggml_context_ptr context(ggml_init({n_tensors * ggml_tensor_overhead() + graph, nullptr, true}));
    if (!context) throw WindowFailure("not enough memory");
    return context;
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

// Rows of each slice, of about `wanted`: all of them leave the whole's remainder by kRowsAtOnce.
std::vector<int64_t> row_counts(int64_t n_rows, int64_t wanted) {
    std::vector<int64_t> counts;
    const int64_t odd = n_rows % kRowsAtOnce;
    if (odd == 0) {
        for (int64_t at = 0; at < n_rows; at += wanted) counts.push_back(std::min(wanted, n_rows - at));
        return counts;
    }
    const int64_t least = (n_rows + wanted - 1) / wanted;
    const int64_t n = (least + kRowsAtOnce - 2) / kRowsAtOnce * kRowsAtOnce + 1;  // so the remainders add up
    const int64_t blocks = (n_rows - n * odd) / kRowsAtOnce;
    for (int64_t i = 0; i < n; ++i) {
        counts.push_back((blocks * (i + 1) / n - blocks * i / n) * kRowsAtOnce + odd);
    }
    return counts;
}

ggml_backend_ptr processor(int n_threads) {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_ptr backend(device == nullptr ? nullptr : ggml_backend_dev_init(device, nullptr));
    if (!backend) throw WindowFailure("ggml cannot use the CPU");
    auto* set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"));
    if (set_threads != nullptr) set_threads(backend.get(), n_threads);
    return backend;
}

}  // namespace

OutputRows::OutputRows(ComposedFile& file, int n_threads) : backend_(processor(n_threads)) {
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
void OutputRows::look_at(const llama_model* model) {
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
    const ggml_context_ptr context = small_context(2);
    ggml_tensor* twin = ggml_dup_tensor(context.get(), found);
    const ggml_backend_buffer_ptr place = stand_in(layout_, ggml_backend_buft_get_alloc_size(layout_, found));
    introduce(twin, place.get());
    kernels_ = twin->extra;
}

llama_model_tensor_buft_override OutputRows::elsewhere() const {
    return {pattern_.c_str(), unheld_large_buffer_type()};
}

ggml_tensor* OutputRows::slice_of(int64_t rows) {
    contexts_.push_back(small_context(1));
    return ggml_new_tensor_2d(contexts_.back().get(), matrix_->type, matrix_->ne[0], rows);
}

void OutputRows::adopt(const llama_model* model, uint64_t slice_bytes, int layer) {
    ggml_tensor* matrix = nullptr;
    for (const auto& [name, tensor] : llama_internal_get_tensor_map(model)) {
        if (name == name_) matrix = tensor;
    }
    if (matrix == nullptr) throw WindowFailure("the window has lost its tensor " + name_);
    matrix_ = matrix;
    zeros_ = Pages(ggml_nbytes(matrix));
    host_ = stand_in(ggml_backend_cpu_buffer_type(), ggml_backend_buft_get_alignment(layout_));
    matrix->buffer = host_.get();
    matrix->data = zeros_.data();
    matrix->extra = nullptr;

    const int64_t n_rows = matrix->ne[1];
    const uint64_t row_bytes = matrix->nb[1];
    const auto fit = static_cast<int64_t>(slice_bytes / row_bytes);
    const int64_t least = (n_rows + kMostSlices - 1) / kMostSlices;
    const int64_t rows =
        std::max({fit / kRowsTogether, (least + kRowsTogether - 1) / kRowsTogether, int64_t{1}}) *
        kRowsTogether;
    const std::vector<int64_t> counts = row_counts(n_rows, rows);
    const int64_t most = *std::max_element(counts.begin(), counts.end());
    place_ = stand_in(layout_, ggml_backend_buft_get_alloc_size(layout_, slice_of(most)));
    slices_.reserve(counts.size());
    int64_t first = 0;
    for (const int64_t count : counts) {
        ggml_tensor* slice = slice_of(count);
        introduce(slice, place_.get());
        if (slice->extra != kernels_) refuse("a part of its rows has other kernels than the whole");
        const uint64_t bytes = ggml_nbytes(slice);
        slices_.push_back({slice, "output.rows." + std::to_string(first), layer,
                           file_offset_ + static_cast<uint64_t>(first) * row_bytes, bytes,
                           ggml_backend_buft_get_alloc_size(layout_, slice), layout_});
        first_rows_.push_back(first);
        first += count;
    }
    for (Weight& slice : slices_) slice_pointers_.push_back(&slice);
}

bool OutputRows::is_stand_in(ggml_backend_buffer_t buffer) const {
    return buffer == host_.get() || buffer == place_.get();
}

bool OutputRows::makes(const ggml_tensor* node) const {
    const auto is_it = [this](const ggml_tensor* one) {
        return one != nullptr && (one == matrix_ || one->view_src == matrix_);
    };
    if (node->ne[1] == 0) return false;  // no token of the batch wants logits
    if (std::none_of(std::begin(node->src), std::end(node->src), is_it)) return false;
    if (node->op == GGML_OP_GET_ROWS) return false;  // of token 0, and what is read there is written over
    const ggml_tensor* input = node->src[1];
    if (node->op != GGML_OP_MUL_MAT || node->src[0] != matrix_ || input == nullptr ||
        input->type != GGML_TYPE_F32 || input->ne[2] != 1 || input->ne[3] != 1 ||
        node->type != GGML_TYPE_F32 || !ggml_is_contiguous(node)) {
        refuse("the model does not only multiply with it");
    }
    return true;
}

void OutputRows::take_out(ggml_tensor* node) {
    put_back();
    node_ = node;
    node_->op = GGML_OP_NONE;
}

void OutputRows::put_back() {
    if (node_ != nullptr) node_->op = GGML_OP_MUL_MAT;
    node_ = nullptr;
}

void OutputRows::compute(const Weight& slice) {
    const ggml_tensor* input = node_->src[1];
    const int64_t n_tokens = node_->ne[1];
    const int64_t rows = slice.tensor->ne[1];
    const ggml_context_ptr context = small_context(3, 4);
    // The input as a leaf, or all that leads to it would be computed again.
    ggml_tensor* leaf = ggml_new_tensor_2d(context.get(), input->type, input->ne[0], input->ne[1]);
    std::copy(std::begin(input->nb), std::end(input->nb), std::begin(leaf->nb));
    leaf->data = input->data;
    leaf->buffer = input->view_src != nullptr ? input->view_src->buffer : input->buffer;
    ggml_tensor* product = ggml_mul_mat(context.get(), slice.tensor, leaf);
    std::memcpy(product->op_params, node_->op_params, sizeof product->op_params);
    product_.resize(static_cast<size_t>(rows * n_tokens));
    product->data = product_.data();
    product->buffer = node_->view_src != nullptr ? node_->view_src->buffer : node_->buffer;
    ggml_cgraph* graph = ggml_new_graph_custom(context.get(), 4, false);
    ggml_build_forward_expand(graph, product);
    if (ggml_backend_graph_compute(backend_.get(), graph) != GGML_STATUS_SUCCESS) {
        throw WindowFailure("ggml could not compute with the output matrix");
    }
    const auto at = static_cast<size_t>(&slice - slices_.data());
    for (int64_t token = 0; token < n_tokens; ++token) {
        char* to = static_cast<char*>(node_->data) + static_cast<size_t>(token) * node_->nb[1];
        std::memcpy(to + static_cast<size_t>(first_rows_[at]) * sizeof(float), product_.data() + token * rows,
                    static_cast<size_t>(rows) * sizeof(float));
    }
}

}  // namespace edged
