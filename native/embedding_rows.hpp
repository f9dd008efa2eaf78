// Rows of a model's token embedding, read from disk one by one and expanded to f32.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <string>
#include <vector>

#include "composed_file.hpp"

namespace edged {

struct EmbeddingTable {
    std::string path;
    uint64_t file_offset = 0;
    int ggml_type_id = 0;
    int64_t n_embd = 0;
    int64_t n_vocab = 0;
};

class EmbeddingRows {
  public:
    // Throws WindowFailure if the type is unknown or the file too short.
    explicit EmbeddingRows(const EmbeddingTable& table);

    int64_t n_vocab() const { return n_vocab_; }
    int64_t n_embd() const { return n_embd_; }
    // Writes row `token` (0 <= token < n_vocab) as n_embd floats; throws WindowFailure if it cannot be read.
    void read(int32_t token, float* to);

  private:
    PartFile file_;
    uint64_t file_offset_;
    int64_t n_embd_;
    int64_t n_vocab_;
    uint64_t row_bytes_;
    ggml_to_float_t to_float_;  // null where rows are f32 already
    std::vector<char> row_;
};

}  // namespace edged
