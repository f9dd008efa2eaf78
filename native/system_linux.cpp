// Reading past the page cache on Linux: O_DIRECT, which some file systems (tmpfs, for one) refuse.
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "system.hpp"

namespace edged {

UncachedFile open_uncached(const std::string& path, bool direct) {
    if (direct) {
        const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
        if (descriptor >= 0) return {descriptor, true};
    }
    return {::open(path.c_str(), O_RDONLY | O_CLOEXEC), false};
}

void forget_cached(int descriptor, off_t offset, off_t length) {
    ::posix_fadvise(descriptor, offset, length, POSIX_FADV_DONTNEED);
}

bool sync_data(int descriptor) { return ::fdatasync(descriptor) == 0; }

void name_thread(const char* name) { ::pthread_setname_np(::pthread_self(), name); }

}  // namespace edged
