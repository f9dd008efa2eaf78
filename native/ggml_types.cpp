#include "ggml_types.hpp"

#include <ggml.h>

namespace edged {

std::optional<TypeLayout> type_layout(int id) {
    if (id < 0 || id >= GGML_TYPE_COUNT) return std::nullopt;
    const auto type = static_cast<ggml_type>(id);
    const int64_t block_size = ggml_blck_size(type);
    const size_t block_bytes = ggml_type_size(type);
    if (block_size <= 0 || block_bytes == 0) return std::nullopt;  // a retired type leaves a gap
    return TypeLayout{id, ggml_type_name(type), block_size, block_bytes};
}

std::vector<TypeLayout> all_types() {
    std::vector<TypeLayout> found;
    for (int id = 0; id < GGML_TYPE_COUNT; ++id) {
        if (auto layout = type_layout(id)) found.push_back(*layout);
    }
    return found;
}

std::optional<int> type_id(const std::string& name) {
    for (const TypeLayout& layout : all_types()) {
        if (layout.name == name) return layout.id;
    }
    return std::nullopt;
}

}  // namespace edged
