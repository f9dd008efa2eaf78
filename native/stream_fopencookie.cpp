// open_stream for systems that have fopencookie (glibc, musl, Android).
#include <cstdio>

#include "composed_file.hpp"
#include "error.hpp"

namespace edged {

namespace {

ssize_t read_cookie(void* cookie, char* to, size_t length) {
    return static_cast<StreamState*>(cookie)->read(to, length);
}

int seek_cookie(void* cookie, off64_t* offset, int whence) {
    const int64_t at = static_cast<StreamState*>(cookie)->seek(*offset, whence);
    if (at < 0) return -1;
    *offset = at;
    return 0;
}

int close_cookie(void* cookie) {
    delete static_cast<StreamState*>(cookie);
    return 0;
}

}  // namespace

FILE* open_stream(ComposedFile& file) {
    auto state = std::make_unique<StreamState>(StreamState{file});
    const cookie_io_functions_t functions{read_cookie, nullptr, seek_cookie, close_cookie};
    FILE* stream = fopencookie(state.get(), "rb", functions);
    if (stream == nullptr) throw WindowFailure("no memory for a file stream");
    state.release();
    return stream;
}

}  // namespace edged
