#include "embedding_rows.hpp"

#include "error.hpp"
#include "ggml_types.hpp"

namespace edged {

EmbeddingRows::EmbeddingRows(const EmbeddingTable& table)
    : file_(table.path), file_offset_(table.file_offset), n_embd_(table.n_embd), n_vocab_(table.n_vocab) {
    const auto layout = type_layout(table.ggml_type_id);
    if (!layout) {
        throw WindowFailure("the embedding has the unknown ggml type " + std::to_string(table.ggml_type_id));
    }
    if (n_embd_ <= 0 || n_vocab_ <= 0 || n_embd_ % layout->block_size != 0) {
        throw WindowFailure("an embedding row of " + std::to_string(n_embd_) + " values cannot be " +
                            layout->name);
    }
    row_bytes_ = static_cast<uint64_t>(n_embd_ / layout->block_size) * layout->block_bytes;
    to_float_ = ggml_get_type_traits(static_cast<ggml_type>(table.ggml_type_id))->to_float;
    if (to_float_ == nullptr && table.ggml_type_id != GGML_TYPE_F32) {
        throw WindowFailure("the embedding's type " + layout->name + " cannot be read row by row");
    }
    if (file_offset_ > file_.size() ||
        row_bytes_ > (file_.size() - file_offset_) / static_cast<uint64_t>(n_vocab_)) {
        throw WindowFailure(table.path + " is too short for the token embedding");
    }
    row_.resize(row_bytes_);
}

void EmbeddingRows::read(int32_t token, float* to) {
    const uint64_t offset = file_offset_ + row_bytes_ * static_cast<uint64_t>(token);
    if (to_float_ == nullptr) {
        file_.read(to, row_bytes_, offset);
    } else {
        file_.read(row_.data(), row_bytes_, offset);
        to_float_(row_.data(), to, n_embd_);
    }
}

}  // namespace edged
