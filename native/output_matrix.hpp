// The output matrix of the window that ends a model, as a weight that is read for every token as layers are.
#pragma once

#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <llama.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "composed_file.hpp"
#include "pages.hpp"
#include "placement.hpp"
#include "row_slices.hpp"

namespace edged {

class OutputMatrix {
  public:
    // Loads the window without its weights, to learn about its output matrix. Throws WindowFailure.
    explicit OutputMatrix(ComposedFile& file);

    // For llama_model_params, beside the layers' weights.
    llama_model_tensor_buft_override elsewhere() const;
    // Where it is in the composed file.
    std::pair<uint64_t, uint64_t> range() const { return {file_offset_, file_bytes_}; }
    // Takes the matrix of the loaded window: from now on it reads as zeros, and nothing may compute with it.
    void adopt(const llama_model* model);
    const ggml_tensor* tensor() const { return weight_.tensor; }
    // In slices of about `slice_bytes`, which belong to the pseudo layer `layer`. Throws WindowFailure where
    // its kernels do not allow that.
    std::unique_ptr<RowSlices> cut(uint64_t slice_bytes, int layer);
    bool is_stand_in(ggml_backend_buffer_t buffer) const;

  private:
    void look_at(const llama_model* model);

    std::string name_;
    std::string pattern_;
    uint64_t file_offset_ = 0;
    uint64_t file_bytes_ = 0;
    ggml_backend_buffer_type_t layout_ = nullptr;
    const void* kernels_ = nullptr;  // that libllama would compute the whole with

    Weight weight_;  // whose tensor is libllama's
    Pages zeros_;
    ggml_backend_buffer_ptr host_;   // what the matrix looks like to libllama
    ggml_backend_buffer_ptr place_;  // and what slices look like to their kernels
};

}  // namespace edged
