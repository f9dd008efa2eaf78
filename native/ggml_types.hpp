// The tensor types that this build of ggml knows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace edged {

struct TypeLayout {
    int id = 0;
    std::string name;
    int64_t block_size = 0;    // values per block
    uint64_t block_bytes = 0;  // bytes per block
};

// Nothing for an id that ggml does not know, or no longer supports.
std::optional<TypeLayout> type_layout(int id);
std::vector<TypeLayout> all_types();
// The id of the type called `name`; nothing if there is none.
std::optional<int> type_id(const std::string& name);

}  // namespace edged
