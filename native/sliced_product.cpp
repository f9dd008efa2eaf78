#include "sliced_product.hpp"

#include <ggml.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "error.hpp"

namespace edged {

namespace {

constexpr size_t kNodes = 4;

ggml_backend_ptr processor(int n_threads) {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_ptr backend(device == nullptr ? nullptr : ggml_backend_dev_init(device, nullptr));
    if (!backend) throw WindowFailure("ggml cannot use the CPU");
    auto* set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"));
    if (set_threads != nullptr) set_threads(backend.get(), n_threads);
    return backend;
}

ggml_backend_buffer_t buffer_of(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
}

}  // namespace

SlicedProduct::SlicedProduct(int n_threads) : backend_(processor(n_threads)) {}

bool SlicedProduct::can_be(const ggml_tensor* node, const ggml_tensor* matrix) {
    const ggml_tensor* input = node->src[1];
    return node->op == GGML_OP_MUL_MAT && node->src[0] == matrix && input != nullptr && input != matrix &&
           input->type == GGML_TYPE_F32 && matrix->ne[2] == 1 && matrix->ne[3] == 1 &&
           node->type == GGML_TYPE_F32 && ggml_is_contiguous(node);
}

void SlicedProduct::take_out(ggml_tensor* node) {
    put_back();
    node_ = node;
    node_->op = GGML_OP_NONE;
}

void SlicedProduct::put_back() {
    if (node_ != nullptr) node_->op = GGML_OP_MUL_MAT;
    node_ = nullptr;
}

void SlicedProduct::compute(const RowSlices& rows, size_t slice) {
    const ggml_tensor* input = node_->src[1];
    ggml_tensor* weight = rows.slices[slice].tensor;
    const auto n_rows = static_cast<size_t>(weight->ne[1]);
    const auto n_columns = static_cast<size_t>(node_->ne[1] * node_->ne[2] * node_->ne[3]);
    const ggml_context_ptr context(
        ggml_init({3 * ggml_tensor_overhead() + ggml_graph_overhead_custom(kNodes, false), nullptr, true}));
    if (!context) throw WindowFailure("not enough memory");
    // The input as a leaf, or all that leads to it would be computed again.
    ggml_tensor* leaf = ggml_new_tensor(context.get(), input->type, GGML_MAX_DIMS, input->ne);
    std::copy(std::begin(input->nb), std::end(input->nb), std::begin(leaf->nb));
    leaf->data = input->data;
    leaf->buffer = buffer_of(input);
    ggml_tensor* product = ggml_mul_mat(context.get(), weight, leaf);
    std::memcpy(product->op_params, node_->op_params, sizeof product->op_params);
    product_.resize(n_rows * n_columns);
    product->data = product_.data();
    product->buffer = buffer_of(node_);
    ggml_cgraph* graph = ggml_new_graph_custom(context.get(), kNodes, false);
    ggml_build_forward_expand(graph, product);
    if (ggml_backend_graph_compute(backend_.get(), graph) != GGML_STATUS_SUCCESS) {
        throw WindowFailure("ggml could not compute with a part of a matrix");
    }
    auto* to = static_cast<float*>(node_->data) + rows.first_rows[slice];
    for (size_t column = 0; column < n_columns; ++column, to += node_->ne[0]) {
        std::memcpy(to, product_.data() + column * n_rows, n_rows * sizeof(float));
    }
}

}  // namespace edged
