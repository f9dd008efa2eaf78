// The output matrix of the window that ends a model, in slices of rows, so that it need not be in memory as a
// whole: it is read for every token as layers are.
//
// In libllama's graph it is one product of one matrix. That node is taken out of the graph while it is
// computed; what it would have yielded is computed here, slice by slice, with the same kernels.
#pragma once

#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <llama.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "composed_file.hpp"
#include "pages.hpp"
#include "placement.hpp"

namespace edged {

class OutputRows {
  public:
    // Loads the window without its weights, to learn about its output matrix. Throws WindowFailure.
    OutputRows(ComposedFile& file, int n_threads);

    // For llama_model_params, beside the layers' weights.
    llama_model_tensor_buft_override elsewhere() const;
    // Where it is in the composed file.
    std::pair<uint64_t, uint64_t> range() const { return {file_offset_, file_bytes_}; }
    // Takes the matrix of the loaded window, and cuts it into slices of about `slice_bytes` in memory, which
    // belong to the pseudo layer `layer`. Throws WindowFailure where its kernels do not allow that.
    void adopt(const llama_model* model, uint64_t slice_bytes, int layer);
    // From the first row to the last one.
    const std::vector<Weight*>& slices() const { return slice_pointers_; }
    bool is_stand_in(ggml_backend_buffer_t buffer) const;

    // Whether the node is the product of the matrix. Throws WindowFailure for one of another kind.
    bool makes(const ggml_tensor* node) const;
    // Takes the node out of the graph, until `put_back`.
    void take_out(ggml_tensor* node);
    bool is_out() const { return node_ != nullptr; }
    // Computes the rows of `slice`, whose data is there, once what is in front of the node is computed.
    // Throws WindowFailure.
    void compute(const Weight& slice);
    void put_back();

  private:
    void look_at(const llama_model* model);
    ggml_tensor* slice_of(int64_t rows);

    std::string name_;
    std::string pattern_;
    uint64_t file_offset_ = 0;
    uint64_t file_bytes_ = 0;
    ggml_backend_buffer_type_t layout_ = nullptr;
    const void* kernels_ = nullptr;  // that libllama would compute the whole with

    ggml_backend_ptr backend_;
    const ggml_tensor* matrix_ = nullptr;  // libllama's: it reads as zeros, and nothing computes with it
    Pages zeros_;
    ggml_backend_buffer_ptr host_;   // what the matrix looks like to libllama
    ggml_backend_buffer_ptr place_;  // and what slices look like to their kernels
    std::vector<ggml_context_ptr> contexts_;
    std::vector<Weight> slices_;
    std::vector<Weight*> slice_pointers_;
    std::vector<int64_t> first_rows_;

    ggml_tensor* node_ = nullptr;
    std::vector<float> product_;
};

}  // namespace edged
