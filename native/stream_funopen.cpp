// open_stream for systems that have funopen (macOS, BSD).
#include <cstdio>

#include "composed_file.hpp"
#include "error.hpp"

namespace edged {

namespace {

int read_cookie(void* cookie, char* to, int length) {
    return static_cast<int>(static_cast<StreamState*>(cookie)->read(to, static_cast<size_t>(length)));
}

fpos_t seek_cookie(void* cookie, fpos_t offset, int whence) {
    return static_cast<StreamState*>(cookie)->seek(offset, whence);
}

int close_cookie(void* cookie) {
    delete static_cast<StreamState*>(cookie);
    return 0;
}

}  // namespace

FILE* open_stream(ComposedFile& file) {
    auto state = std::make_unique<StreamState>(StreamState{file});
    FILE* stream = funopen(state.get(), read_cookie, nullptr, seek_cookie, close_cookie);
    if (stream == nullptr) throw WindowFailure("no memory for a file stream");
    state.release();
    return stream;
}

}  // namespace edged
