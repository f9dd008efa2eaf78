// Which weights of a window are held by us and not by libllama, and what they have to look like in memory.
//
// A window is first loaded without its weights, to learn for which kernels libllama lays out each tensor.
// Then it is loaded with the matrices of its layers in a buffer that is never written, and each of them is
// pointed to memory of ours: resident, or a slot of the streamer.
#pragma once

#include <ggml-backend.h>
#include <llama.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "composed_file.hpp"

namespace edged {

// A matrix of a layer.
struct Weight {
    ggml_tensor* tensor = nullptr;  // known once the window is loaded
    std::string name;
    int layer = 0;              // counted from the window's first
    uint64_t file_offset = 0;   // in the composed file
    uint64_t file_bytes = 0;    // as the model has it
    uint64_t memory_bytes = 0;  // as its kernels want it
    ggml_backend_buffer_type_t layout = nullptr;
};

class Placement {
  public:
    // Loads the window without its weights. Throws WindowFailure with the reason that libllama gives.
    explicit Placement(ComposedFile& file);

    // In the order in which the model names them.
    std::vector<Weight>& weights() { return weights_; }
    // For llama_model_params: where libllama is to put these weights, ended by an empty entry.
    const llama_model_tensor_buft_override* overrides();
    // For ComposedFile::pass_over.
    std::vector<std::pair<uint64_t, uint64_t>> ranges() const;
    // Gives each tensor of the loaded window the look that its kernels expect; its data is up to the caller.
    void adopt(const llama_model* model);
    // Buffers that stand for a layout only: nothing lies in them.
    bool is_stand_in(ggml_backend_buffer_t buffer) const;

  private:
    using Buffer = std::unique_ptr<ggml_backend_buffer, decltype(&ggml_backend_buffer_free)>;

    void find_weights(const llama_model* model, const gguf_context* index);
    void make_pattern();
    ggml_backend_buffer_t stand_in(ggml_backend_buffer_type_t layout);

    std::vector<Weight> weights_;
    std::string pattern_;
    std::vector<llama_model_tensor_buft_override> overrides_;
    std::map<ggml_backend_buffer_type_t, Buffer> stand_ins_;
};

}  // namespace edged
