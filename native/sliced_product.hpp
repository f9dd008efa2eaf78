// The product of a matrix that is computed slice by slice.
//
// In libllama's graph it is one node. That node is taken out of the graph while the others are computed; what
// it would have yielded is computed here, with the same kernels.
#pragma once

#include <ggml-backend.h>
#include <ggml-cpp.h>

#include <vector>

#include "row_slices.hpp"

namespace edged {

class SlicedProduct {
  public:
    explicit SlicedProduct(int n_threads);

    // Whether the node is a product of `matrix` such as can be computed here.
    static bool can_be(const ggml_tensor* node, const ggml_tensor* matrix);
    // Takes the node out of the graph, until `put_back`.
    void take_out(ggml_tensor* node);
    bool is_out() const { return node_ != nullptr; }
    // The matrix of the node that is out.
    const ggml_tensor* matrix() const { return node_->src[0]; }
    // Computes the rows of a slice, whose data is there, once what is in front of the node is computed.
    // Throws WindowFailure.
    void compute(const RowSlices& rows, size_t slice);
    void put_back();

  private:
    ggml_backend_ptr backend_;
    ggml_tensor* node_ = nullptr;
    std::vector<float> product_;
};

}  // namespace edged
